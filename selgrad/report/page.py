"""The report of a sweep: figures, and one self-contained HTML page that can be sent by mail.

Everything comes from record files and kept reconstructions; no result is computed here.
"""

from __future__ import annotations

import base64
import json
import re
import warnings
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from selgrad import files
from selgrad.report import figures
from selgrad.report.flags import flags
from selgrad.report.gallery import sentences
from selgrad.report.left import left_rows
from selgrad.report.tables import attack_label, dataset_label, mask_overlaps, metric_label, protections, read_records, same_masks, with_labels
from selgrad.report.verdicts import by_level, level_cell, protecting_by_level, stopping_ratios, verdict_grid

_PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>selgrad: {{ name }}</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; background: #fff; }
 h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
 img { max-width: 100%; } figure { margin: 1rem 0; } figcaption { color: #57606a; font-size: .9rem; }
 table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
 th, td { border: 1px solid #d0d7de; padding: .3rem .6rem; text-align: left; } th { background: #f6f8fa; }
 .stopped { background: #e6f4ea; } .succeeds { background: #fdecea; } .open { background: #fff8c5; }
 .never { color: #57606a; background: repeating-linear-gradient(135deg, #f6f8fa 0 6px, #eaeef2 6px 12px); } .flags li { margin: .3rem 0; }
 details { margin: 1rem 0; } pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: .85rem; }
</style></head><body>
<h1>{{ name }}: which metric, at which ratio, stops which attack</h1>
<p>{{ num_cells }} cells: {{ facts }}. An attack succeeds where {{ rule }}{% if diverged %}; {{ diverged }} cells diverged and count as failed{% endif %}.
 {% if note %}{{ note }}{% endif %}</p>
{% if flags %}<h2>What makes these verdicts worth less</h2>
<ul class="flags">{% for flag in flags %}<li><b>{{ flag.panel }}</b>: {{ flag.name }}; {{ flag.detail }}.</li>
{% endfor %}</ul>{% endif %}
{% macro section(title, caption, images) %}<h2>{{ title }}</h2>
<p>{{ caption }}</p>
{% for image in images %}<figure><picture>{% if image.narrow %}<source media="(max-width: 700px)" srcset="data:image/svg+xml;base64,{{ image.narrow }}">{% endif %}
<img alt="{{ title }}" src="data:image/{{ image.kind }};base64,{{ image.data }}"></picture></figure>{% endfor %}
{% endmacro %}
{% for one in leading %}{{ section(*one) }}{% endfor %}
{% if levels %}<details {% if not leading %}open{% endif %}><summary>What is read at each level, in numbers</summary>
<p>Each input counts with the attack that recovers most of it{% if suite %} (suite {{ suite }}){% endif %}. Shown are the inputs read, out of those that an attack reads with nothing
 encrypted, and the upper end of the 95 % interval of that share. <i>Exact</i> means to the grey level, or the identical text; <i>recognisable</i> means identified among {{ others }}
 other inputs of the data set; <i>attribute</i> means the class, or half of the words. Open: no attack read the input, and none that works converged.</p>
<table><tr>{% for cell in levels[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in levels[1:] %}<tr>{% for cell, kind in row %}<td class="{{ kind }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></details>{% endif %}
{% if left %}<details><summary>What each ratio leaves</summary>
<p>Equal ratios of two metrics do not hide the same: shown are the visible non-zero entries for each unknown coordinate of the input, and the share of each layer's entries that is
 hidden.{% if 'posterior MSE' in left[0] %} The posterior MSE is the certificate: the error that remains for an attacker who knows the distribution of images.{% endif %}</p>
<table><tr>{% for cell in left[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in left[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></details>{% endif %}
<h2>The smallest measured ratio that stops each attack</h2>
<table><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in grid %}<tr>{% for cell in row %}<td class="{{ 'succeeds' if 'still' in cell else 'stopped' if 'stopped' in cell else 'open' if 'no success' in cell else 'never' if 'fails' in cell else '' }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p>“Stopped at r” means that every attack, at r and at each larger measured ratio, converged to another explanation of everything visible; it is given with the number of cells and the
 upper end of the 95 % Wilson interval of the success rate. “No success from r on … unresolved”: some searches had not converged, and a better one may succeed. “Attack fails with
 nothing encrypted” says nothing about any metric (another protection may have stopped it). “≤”: no smaller ratio was tried.</p>
<details><summary>With confidence and cost</summary>
<table><tr><th>attack</th><th>metric</th><th>verdict</th><th>success at ratio 0</th><th>cells at r</th><th>success rate at most</th><th>ciphertext kB per client</th></tr>
{% for row in stops %}<tr><td>{{ row.panel }}</td><td>{{ row.curve }}</td><td>{{ row.verdict }}</td><td>{{ row.at_zero }}</td><td>{{ row.num_cells }}</td><td>{{ row.upper }}</td><td>{{ row.kilobytes }}</td></tr>
{% endfor %}</table></details>
{% for one in sections %}{{ section(*one) }}{% endfor %}
{% if protections %}<h2>What is recovered behind each protection</h2>
<p>Share of attacks that succeed and the median quality of their reconstructions (PSNR in dB, or ROUGE-L), at the smallest ratio measured.</p>
<table><tr><th>setting</th><th>protection</th><th>encrypted</th><th>attack</th><th>succeed</th><th>at most</th><th>cells</th><th>quality</th><th>kB in the clear</th></tr>
{% for row in protections %}<tr><td>{{ row.setting }}</td><td>{{ row.protection }}</td><td>{{ "%g" % (100 * row.ratio) }} %</td><td>{{ row.attack }}</td><td class="{{ 'succeeds' if row.success else 'stopped' if row.works else 'never' if row.works is false else 'open' }}">{{ "%.0f" % (100 * row.success) }} %</td><td>{{ "%.0f" % (100 * row.upper) }} %</td><td>{{ row.num_cells }}</td><td>{{ "%.3g" % row.quality }}</td><td>{{ "%.1f" % (row.plain_bytes / 1000) }}</td></tr>
{% endfor %}</table>{% endif %}
{% if overlaps %}<h2>How similar the masks are</h2>
<p>Mean Jaccard index of two metrics' masks over samples, by share of entries encrypted: 1 is the same mask under two names. By leaf: <code>equivalence.parquet</code>.</p>
<table><tr>{% for cell in overlaps[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in overlaps[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% if texts %}<h2>Sentences</h2>
<p>Reconstructions by metric and share of entries encrypted. Words of the truth in their order are plain, all others <mark>marked</mark>.</p>
{% for group in texts %}<details {% if loop.first %}open{% endif %}><summary>{{ group.title }}: {{ group.attack }}, sample {{ group.sample }}</summary>
<table><tr><th>metric</th><th>encrypted</th><th>sentence</th></tr>
{% for truth in group.truth %}<tr><td colspan="2">truth</td><td><b>{{ truth }}</b></td></tr>
{% endfor %}{% for row in group.rows %}<tr><td>{{ row.metric }}</td><td>{{ row.percent }} %</td><td>{% for pieces in row.pairs %}{% for words, right in pieces %}{% if right %}{{ words }}{% else %}<mark>{{ words }}</mark>{% endif %} {% endfor %}{% if not loop.last %}<br>{% endif %}{% endfor %}</td></tr>
{% endfor %}</table></details>
{% endfor %}{% endif %}
{% if reports %}<h2>Reports of attacks on the host</h2>
<table><tr><th>attack</th><th>metric</th><th>encrypted</th><th>leaves used</th><th>leaves not used</th><th>cells</th></tr>
{% for row in reports %}<tr><td>{{ row.attack }}</td><td>{{ row.metric }}</td><td>{{ row.percent }} %</td><td>{{ row.used }}</td><td>{{ row.unused }}</td><td>{{ row.cells }}</td></tr>
{% endfor %}</table>{% endif %}
<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{{ config }}</pre></details>
<p>Records: <code>pandas.read_parquet("records")</code> or <code>polars.read_parquet("records/*.parquet")</code> in the sweep's folder. selgrad {{ version }},
 run {{ run_id }}, {{ device }}.</p>
</body></html>
""",
    autoescape=True,
)


def _image(folder: Path, stem: str, ending: str) -> dict[str, str]:
    kind = {"svg": "svg+xml", "png": "png"}[ending]
    narrow = folder / f"{stem}{figures.NARROW}.svg"
    coded = lambda file: base64.b64encode(file.read_bytes()).decode()
    return {"kind": kind, "data": coded(folder / f"{stem}.{ending}"), "narrow": coded(narrow) if narrow.exists() else ""}


def _facts(records: pd.DataFrame) -> str:
    parts = [
        (dataset_label(records), "data set", "data sets"),
        (records["model_label"], "model", "models"),
        (records["protection_label"], "protection", "protections"),
        (records["metric_label"], "metric", "metrics"),
        (records["ratio"], "ratio", "ratios"),
        (records["attack_label"], "attack", "attacks"),
        (records["sample"], "sample", "samples"),
        (records["seed"], "seed", "seeds"),
    ]
    return ", ".join(
        f"{column.nunique()} {singular if column.nunique() == 1 else plural}" for column, singular, plural in parts if set(column.unique()) != {"none"}
    )


def _texts(root: Path) -> list[dict[str, Any]]:
    """Groups kept sentences by setting, attack and sample."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sentences(root):
        key = (row["setting"], row["attack"], row["sample"])
        group = groups.setdefault(key, {"title": row["title"], "attack": row["attack"], "sample": row["sample"], "truth": row["truth"], "rows": []})
        group["rows"].append({"metric": row["metric"], "percent": f"{100 * row['ratio']:g}", "pairs": row["pairs"]})
    return list(groups.values())


def _reports(records: pd.DataFrame) -> list[dict[str, Any]]:
    """Lists which leaves an exact attack could use, one row for each attack, metric, ratio and report."""
    if "attack_report" not in records or not (records["attack_report"] != "").any():
        return []
    rows = []
    table = with_labels(records)
    table = table[table["attack_report"] != ""]
    for (attack, metric, ratio, text), cells in table.groupby(["panel", "curve", "ratio", "attack_report"], sort=True):
        try:
            answer = json.loads(text)
        except ValueError:
            continue
        used, unused = (", ".join(answer.get(key, [])) for key in ("used", "unused"))
        rows.append({"attack": attack, "metric": metric, "percent": f"{100 * ratio:g}", "used": used, "unused": unused, "cells": len(cells)})
    return rows


def _overlaps(root: Path) -> list[list[str]]:
    """Returns header and rows of the table of overlaps; an empty list where there is only one metric."""
    table = mask_overlaps(root)
    if table.empty:
        return []
    header = [f"{100 * name:g} %" if isinstance(name, float) else str(name).replace("_", " ") for name in table.columns]
    return [header, *([f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.itertuples(index=False))]


def _levels(table: pd.DataFrame | None) -> list[list[Any]]:
    """Returns header and rows of `by_level`'s table, with each cell's colour; an empty list where there is no table."""
    if table is None:
        return []
    names = list(dict.fromkeys(table["level"]))
    keys = [key for key in ("setting", "metric", "selector") if key == "metric" or table[key].nunique() > 1]
    rows: list[list[Any]] = [[*keys, "encrypted", *names]]
    for key, cells in table.groupby([*keys, "ratio"], sort=False):
        of_level = {row.level: row for row in cells.itertuples()}
        shown = [("", "") if name not in of_level else _level_cell(of_level[name]) for name in names]
        rows.append([*((str(part), "") for part in key[:-1]), (f"{100 * key[-1]:g} %", ""), *shown])
    return rows


def _level_cell(row: Any) -> tuple[str, str]:
    """Returns a row's cell in words, with the CSS class of its colour."""
    text, kind = level_cell(row)
    return text, {"attack failed": "never", "read": "succeeds", "unresolved": "open", "protected": "stopped"}[kind]


def _config(root: Path) -> str:
    """Returns the text of `config.yaml`; records say all that tables and figures need, so a damaged file is named and costs nothing else."""
    file = root / "config.yaml"
    if not file.exists():
        return ""
    try:
        return files.read_text(file)
    except (OSError, UnicodeDecodeError):
        warnings.warn(f"{str(file)!r} is damaged; the report is of the records", stacklevel=3)
        return "config.yaml cannot be read."


def make_report(out: str | Path) -> Path:
    """Draws `figures/` and writes `report.html` in a sweep's folder.

    Args:
      out: the folder of a sweep, finished or not.

    Returns:
      The path of the page.

    Raises:
      SelgradError: if there are no records.
    """
    root = Path(out)
    records = read_records(root)
    # In place: a copy would be as large again.
    records["panel"], records["curve"] = attack_label(records), metric_label(records)
    folder = root / "figures"
    leading, sections = [], []
    # Records of earlier versions lack these columns.
    by = by_level(records) if {"level", "converged", "num_visible"} <= set(records.columns) else None
    level = None if by is None else figures.levels_against_ratio(by, folder)
    if level is not None:
        protecting = figures.protecting(protecting_by_level(records), folder)
        caption = (
            "Share of inputs that at least one attack recovers, with 95 % Wilson intervals; n counts the inputs that an attack recovers as well with nothing encrypted. Below: the "
            "smallest share of encrypted entries that leaves none recovered, with a bootstrap interval over inputs. It holds for these inputs and attacks only; hollow markers mean "
            "that searches ended too early."
        )
        stems = [level] if protecting is None else [level, protecting]
        leading.append(("What is recovered, and which share of encrypted entries prevents it", caption, [_image(folder, stem, "svg") for stem in stems]))
    quality = [figures.quality_against_ratio(records, folder, measure.name) for measure in figures.drawn_measures(records)]
    caption = (
        "One curve per metric, mean over samples and seeds, with 95 % bands (bootstrap over samples, none below four; Wilson's for shares). Lower is "
        "better protected. An attack that infers a wrong label from a half-hidden last layer fails for that reason alone, so compare the recovered labels as well."
    )
    sections.append(("Quality of the reconstruction against the ratio encrypted", caption, [_image(folder, stem, "svg") for stem in quality]))
    profile = figures.success_profiles(records, folder)
    if profile is not None:
        caption = (
            "Quality of the best attack on each input, without a threshold: each curve is the share of inputs recovered at least as well as the axis says. "
            "A curve that falls far to the left means protection by any definition of success."
        )
        sections.append(("Success at every threshold", caption, [_image(folder, profile, "svg")]))
    cost = figures.cost_against_protection(records, folder)
    if cost is not None:
        caption = (
            "Everything that one client sends: ciphertexts, measured with real CKKS on its own selected entries, the list of encrypted entries, and the rest in the clear. "
            "A ciphertext holds thousands of entries, so shares that need the same number of ciphertexts cost nearly the same. The dotted line is the gradient without encryption."
        )
        sections.append(("Cost against protection", caption, [_image(folder, cost, "svg")]))
    pictures = figures.galleries(root, folder, records)
    if pictures:
        caption = "The truth is above; below it are the reconstructions by metric (rows) and share of encrypted entries (columns), each with the level that it reaches."
        sections.append(("Reconstructions", caption, [_image(folder, stem, "png") for stem in pictures]))
    stops = stopping_ratios(records)
    files.write_text(folder / "stopping_ratios.csv", stops.to_csv(index=False))
    header, grid = verdict_grid(stops, same_masks(root))

    def share(value: float) -> str:
        return f"{value:.0%}" if figures.finite(value) else ""

    rows = [
        {
            "panel": row.panel, "curve": row.curve, "verdict": row.verdict, "at_zero": share(row.success_at_0), "num_cells": row.num_cells or "",
            "upper": share(row.upper), "kilobytes": f"{row.ciphertext_bytes / 1000:,.0f}" if figures.finite(row.ciphertext_bytes) else "",
        }
        for row in stops.itertuples()
    ]  # fmt: skip
    page = _PAGE.render(
        name=records["sweep"].iloc[0],
        num_cells=f"{len(records):,}",
        facts=_facts(records),
        rule=" or ".join(re.sub("^level: ", "it reaches the level ", rule) for rule in records["success_rule"].unique()),
        texts=_texts(root),
        reports=_reports(records),
        overlaps=_overlaps(root),
        protections=protections(records).to_dict("records"),
        diverged=int(records["diverged"].sum()),
        flags=flags(records),
        levels=_levels(by),
        left=left_rows(records),
        suite=next((text for text in records.get("suite", []) if text), ""),
        others=f"{int(records['num_others'].max()):,}" if "num_others" in records else "",
        note="" if cost is not None else "Encryption costs were not measured.",
        header=header,
        grid=grid,
        stops=rows,
        leading=leading,
        sections=sections,
        config=_config(root),
        version=records["selgrad_version"].iloc[0],
        run_id=records["run_id"].iloc[0],
        device=records["device"].iloc[0],
    )
    file = root / "report.html"
    files.write_text(file, page)
    return file
