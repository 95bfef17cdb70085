"""Writes the pages that follow from the code and from what was measured: the configuration's keys, the records' columns, and the engine's performance.

Run: uv run python docs/generate.py   (a test says when it is due)
"""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import jupytext
import pandas as pd
import scipy.stats

from selgrad import measures
from selgrad.cli.group import cli
from selgrad.config import EncryptionConfig, FeaturesConfig, RoundsConfig, Section, SuccessConfig, SweepConfig, WandbConfig
from selgrad.federation.config import ClientsConfig, Content, FaultConfig, KeysConfig, LocalConfig
from selgrad.federation.journal import ROUND_COLUMNS
from selgrad.registry import REGISTRIES, describe
from selgrad.report import figures
from selgrad.suites.members import SUITES
from selgrad.sweep.records import COLUMNS, EMPTY, unit

HERE = Path(__file__).parent


def _rows(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


_KINDS = {"test": "a data set", "clients": "a mapping", "local": "a mapping", "wandb": "a mapping", "faults": "a list of mappings or none"}
"""Of keys whose values become sections of their own."""


def _kind(name: str, annotation: Any, is_grid: bool) -> str:
    if name in _KINDS:
        return _KINDS[name]
    if name in REGISTRIES and not is_grid:
        return "a name, or a mapping with its arguments"
    if name == "ratio" and not is_grid:
        return "number"
    if name in REGISTRIES:
        return "names, an axis"
    if name == "encryption":
        return "a mapping or none"
    if name in ("ratio", "seeds"):
        return "numbers, an axis"
    if name == "public":
        return "a data set"
    return "a mapping" if isinstance(annotation, type) and issubclass(annotation, Section) else describe(annotation)


def _default(field: Any) -> str:
    written = list(field.default) if isinstance(field.default, tuple) else field.default
    return "needed" if field.is_required() else "`" + str(written).replace("None", "none") + "`"


def _table(section: type[Section]) -> str:
    kind = lambda name, field: _kind(name, field.annotation, section is SweepConfig).replace("|", chr(92) + "|")
    rows = [(f"`{name}`", kind(name, field), _default(field), field.description) for name, field in section.model_fields.items()]
    return _rows(("key", "value", "default", ""), rows)


VARIABLES = {
    "JAX_COMPILATION_CACHE_DIR": "Folder in which JAX keeps compiled programs; by default `selgrad/compiled` in the user's folder for caches, at most 2 GB.",
    "SELGRAD_COMPILATION_CACHE": "`off` keeps no compiled programs on disk.",
    "SELGRAD_FACTORS": "`0` computes every gradient explicitly instead of as outer products where dense layers see one row: slower, and equal up to rounding.",
    "SELGRAD_LOCK": "`off` continues where the file system of a sweep's folder cannot lock files; make sure that no other process uses the folder.",
    "SELGRAD_MEMORY_SHARE": "Share of the memory for blocks that this process may take; executors set it where several workers share a machine.",
    "SELGRAD_STRIDE": "Number of steps of an attack between two checks whether all of its restarts are done: 8, and 1 on a CPU, where a check is free.",
    "XLA_FLAGS": "XLA's own flags; unless they say how many devices a CPU has, it has one per core.",
}
"""Environment variables and what they do."""


def configuration() -> str:
    """The page of keys."""
    parts = [
        "# Configuration\n\nWritten by `docs/generate.py` from the schemas; a key that is not listed is refused, with the nearest one that is.\n",
        "## A sweep\n\nNames are those of `selgrad list`, places (`file.py:attribute`), or mappings of a name and arguments; a list is an axis of the grid.\n",
        _table(SweepConfig),
    ]
    for title, section in (
        ("encryption", EncryptionConfig),
        ("rounds", RoundsConfig),
        ("features", FeaturesConfig),
        ("success", SuccessConfig),
        ("wandb", WandbConfig),
    ):
        parts += [f"\n### `{title}`\n\n{(section.__doc__ or '').strip()}\n", _table(section)]
    parts += ["\n## A federated run\n", _table(Content)]
    for title, section in (("clients", ClientsConfig), ("local", LocalConfig), ("encryption", KeysConfig), ("faults", FaultConfig)):
        parts += [f"\n### `{title}` of a federated run\n\n{(section.__doc__ or '').strip()}\n", _table(section)]
    rows = [(f"`{name}`", about) for name, about in VARIABLES.items()]
    parts += [
        "\n## Environment variables\n\nNone of them changes the identity of a sweep, so a sweep continues in the same folder under other values.\n",
        _rows(("variable", ""), rows),
    ]
    return "\n".join(parts) + "\n"


def records() -> str:
    """The page of columns."""
    rows = [(f"`{name}`", kind, unit(name, kind), EMPTY.get(name, ""), about) for name, (kind, about) in COLUMNS.items()]
    head = (
        '# Records\n\nWritten by `docs/generate.py` from `selgrad.sweep.records`. One row a cell; `pandas.read_parquet("DIR/records")` or '
        '`polars.read_parquet("DIR/records/*.parquet")`.\n'
    )
    of = {"images": "images", "labels": "labels of images", "sentences": "sentences", "tokens": "tokens of a text", "others": "any data"}
    told = [(f"`{one.name}`", one.unit or "1", of.get(one.reads, "any data"), one.about) for one in measures.every().values()]
    parts = [head, _rows(("column", "type", "unit", "empty where", ""), rows)]
    parts += ["\n## Measures\n\nOne column each where the data have it, and NaN for cells of other data and for searches that diverged.\n"]
    parts += [_rows(("column", "unit", "of", ""), told)]
    parts += [
        "\n## Federated runs\n\n`rounds.parquet`, one row a round.\n",
        _rows(("column", "type", "unit", ""), [(f"`{n}`", k, unit(n, k), a) for n, (k, a) in ROUND_COLUMNS.items()]),
    ]
    events = {"round": "Its number.", "client": "Which participant.", "status": "Such as died, late, missing or malformed.", "detail": "Why, in one line."}
    parts += [
        "\n`events.parquet`, one row for each message that was late, missing or refused.\n",
        _rows(("column", ""), [(f"`{n}`", a) for n, a in events.items()]),
    ]
    return "\n".join(parts) + "\n"


def _result(name: str) -> Any:
    return json.loads((HERE.parent / "benchmarks" / "results" / f"{name}.json").read_text())


def _number(value: float | None) -> str:
    """Three significant digits, and no exponent."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


RATES = """## Attacks

Gradient-matching iterations a second, all lanes of a block together, on {cores} cores, an XLA device each (DLG's are outer steps of L-BFGS; `lamp` is the
optimisation of LAMP without its search). The share is relative to the roofline given by the operations and bytes that XLA counts for a step: one
core multiplies matrices at up to {sgemm:.0f} GFLOP/s and copies {copy:.1f} GB/s, measured in the same minutes as each case. It is above 100 % where
gradients stay in the cache, from which the counted bytes then come (`benchmarks/engine.py`).
"""
FORMS = """
A pass is one reading or writing of an array of the gradient's size, for each step and lane. `written out` has every dense gradient written out
(`SELGRAD_FACTORS=0`), `recomputed` lets XLA compute residual streams again in each of their readers, and `scanned` has a transformer's layers in one loop.
"""
SCALING = """
## Time and memory against parameters, lanes and cells

![seconds and megabytes of a step by parameters and by lanes, and of reading a sweep by cells](figures/scaling.png)
"""
GROWTH = """
A step of Inverting Gradients on an MLP of one image, and on LeNet; time grows faster than linearly where gradients leave the cache
(`benchmarks/scaling.py`).

## Reading many cells

Seconds, and the largest of the processes in GB (`benchmarks/many_cells.py`; faked numbers in the records of a real plan).
"""
SETTINGS = """
## Many settings

One process plans and runs a sweep of {settings:,} settings, of which none compiles like another, in {seconds:,.0f} s. The growth is that
of a line through all settings but the first eight, which are held together; the kernel gives a process 65,530 memory maps (`benchmarks/many_settings.py`).
"""
FAULTS = """
## Faults

Processes killed while a sweep of 96 cells runs, and its records against those of one that nothing disturbed: by cell, every column to the last bit but
times (`benchmarks/faults.py`).
"""
SWEEPS = {"lenet": "LeNet on CIFAR-10, 192 cells, DLG and Inverting Gradients", "cola": "BERT tiny on CoLA, 192 cells, TAG and DAGER"}


def _attacks(engine: Any) -> list[str]:
    found = {(row["case"], row["variant"], row["lanes"]): row for row in engine["attacks"]}
    plain = {(case, lanes): row for (case, variant, lanes), row in found.items() if variant == "as it is"}
    cases, lanes = list(dict.fromkeys(case for case, _ in plain)), sorted({lanes for _, lanes in plain})
    rate = lambda row: _number(row["iterations_per_second"]) if row else ""
    best = {case: max((row for (one, _), row in plain.items() if one == case), key=lambda row: row["iterations_per_second"]) for case in cases}
    bounds = {"flops": "products", "bytes": "memory"}
    told = lambda row: (f"{row['share_of_roofline']:.0%}", bounds[row["bound_by"]], _number(row["compile_seconds"]))
    forms = [
        [case, form.replace("_", " "), n, rate(row), *(_number(row[key]) for key in ("passes", "temporary_megabytes_per_lane", "compile_seconds"))]
        for (case, form, n), row in found.items()
        if any((case, other, n) in found for other in ("written_out", "recomputed", "scanned"))
    ]
    sgemm, copy = (max(row["ceilings"][f"{name}_per_second"] for row in engine["attacks"]) / 1e9 for name in ("flops", "bytes"))
    head = ["", *(f"{n} lane{'s' * (n > 1)}" for n in lanes), "share at the best", "bound by", "compiled in s"]
    return [
        RATES.format(cores=engine["hardware"]["cores"], sgemm=sgemm, copy=copy),
        _rows(head, [[case, *(rate(plain.get((case, n))) for n in lanes), *told(best[case])] for case in cases]),
        FORMS,
        _rows(["", "form", "lanes", "iterations/s", "passes", "temporary MB a lane", "compiled in s"], forms),
    ]


def _phases(phases: Any) -> list[str]:
    parts = ["\n## Sweeps, phase by phase\n\n`before` is an older commit, run in turns on the same machine (`benchmarks/sweep_phases.py`)."]
    for name, title in SWEEPS.items():
        runs = [phases["sweeps"][name][kind] for kind in ("before", "cold", "warm")]
        every = dict.fromkeys(phase for run in runs for phase in run["phases"])
        rows = [[phase, *(_number(run["phases"].get(phase, 0.0)) for run in runs)] for phase in every]
        rows += [["**together**", *(f"**{run['seconds']:.1f}**" for run in runs)], ["compilations", *(run["compilations"] for run in runs)]]
        parts += [f"\n{title}: seconds.\n", _rows(["", "before", "now", "now, programs on disk"], rows)]
    return parts


def _growth(settings: Any) -> str:
    """What a process holds while it plans and runs many settings."""
    rows = []
    for phase in ("planned", "run"):
        largest, slope = settings[phase]["largest"], settings[phase]["per_setting"]
        rows.append([phase, _number(largest["bytes"] / 1e9), f"{largest['maps']:,}", _number(slope["bytes"] / 1e6), _number(slope["maps"])])
    return _rows(["", "GB at most", "maps at most", "MB more with each", "maps more"], rows)


def performance() -> str:
    """The page of measurements."""
    settings = _result("many_settings")
    scaling, cells, faults = _result("scaling"), _result("many_cells")["cells"], _result("faults")["rows"]
    fits = {axis: scaling[axis]["exponents"] for axis in ("parameters", "lanes", "cells")}
    over = lambda fit: " to ".join(f"{n:,}" for n in fit["fitted_over"])
    parts = ("resume", "read", "report", "wandb", "report again", "together")
    reading = [[f"{int(n):,}", *(_number(one[part]["seconds"]) for part in parts), f"{one['together']['peak_bytes'] / 1e9:.2f}"] for n, one in cells.items()]
    counts = ("engine", "fault", "injected", "lost", "doubled", "different")
    page = [
        "# Performance\n\nWritten by `docs/generate.py` from `benchmarks/results/`. For rates beside PyTorch and breaching see "
        "[results/speed.md](results/speed.md).\n",
        *_attacks(_result("engine")),
        *_phases(_result("sweep_phases")),
        SCALING,
        _rows(
            ["", "fitted over", "exponent of seconds", "exponent of bytes"],
            [[axis, over(fit), f"{fit['seconds']:.2f}", f"{fit['megabytes']:.2f}"] for axis, fit in fits.items()],
        ),
        GROWTH,
        _rows(["cells", *parts, "GB"], reading),
        SETTINGS.format(**settings),
        _growth(settings),
        FAULTS,
        _rows(["engine", "fault", "injected", "cells lost", "doubled", "different"], [[row[key] for key in counts] for row in faults]),
    ]
    return "\n".join(page) + "\n"


CALIBRATION = """# Calibration: what each attack reaches with nothing encrypted

Written by `docs/generate.py` from `benchmarks/results/calibration.json` (`benchmarks/calibration/calibrate.py`). Each attack runs on the setting of which a
number is published, with its defaults but for the arguments shown; intervals are 95 % bootstraps over images and weight initialisations, of which three are
few; where there is one, the interval is over images alone. A defence is never credited with an attack's weakness, so a row below its published number is a
reason to doubt every verdict that rests on it.
"""


def _reached(row: Any) -> str:
    """Whether a row reaches what is published, its interval counted."""
    if row["published"] is None:
        return "nothing published"
    best = row["high"] if row["high"] is not None else row["mean"]
    return "yes" if row["mean"] >= row["published"] else "within the interval" if best >= row["published"] else "**no**"


def calibration() -> str:
    """What attacks reach beside what is published."""
    found = _result("calibration")
    rows = []
    for row in found["rows"]:
        low, high = row["low"], row["high"]
        interval = "" if low is None or low != low else f" ({_number(low)} to {_number(high)})"
        published = "" if row["published"] is None else _number(row["published"])
        searched = f"{row['evaluations']:,}" if row.get("evaluations") else ""
        inputs = f"{row['samples']} x {row['seeds']}"
        own = row["attack"].split("(")[0]
        # A row may set another attack beside its own.
        name = row["row"] if row["row"] == "labels" or row["row"].startswith(own) else f"{own}, beside {row['row']}"
        given = row["attack"].partition("(")[2].removesuffix(")")
        rows.append([name, given, row["model"], row["update"], row["measure"], published, _number(row["mean"]) + interval, _reached(row), inputs, searched])
    sources = sorted({(row["row"], row["source"]) for row in found["rows"]})
    head = ["attack", "arguments", "model", "update", "measure", "published", "reached", "as published", "inputs x weights", "gradient evaluations"]
    return "\n".join([CALIBRATION, _rows(head, rows), "\n## Sources\n", *(f"- {name}: {source}." for name, source in sources), CALIBRATED]) + "\n"


CALIBRATED = """
## What falls short

- **Labels after five local steps.** From a learning rate of 0.01 on, on LeNet and the CNN, the last layer leaves its linear regime within the five steps, and
  the label counts inferred by simulating the updates no longer settle on the right values. LeNet is hit harder because its 768 features add up.
- **DAGER after FedAvg** at a learning rate of 0.1 stays a little below the published ROUGE-1 of 0.99, which it reaches at 1e-4, a rate at which clients
  fine-tune.
- **`surrogate` after ten local steps** is about 4 dB worse on LeNet, at a learning rate of 0.01, than Inverting Gradients that simulates all ten, with three
  gradients per attack step in the place of ten: with so few and so large steps, no single point between the first and the last weights explains the update.
  No suite contains it.
- **`tag`** is run here with a start and a learning rate that fit fresh embeddings; its defaults are the published ones, which fit pretrained embeddings
  ([text](text.md))."""

GUIDELINES = """# Guidelines: what to encrypt, by model

Written by `docs/generate.py` from `benchmarks/results/suites.json` (`benchmarks/suites.py`). For each setting the question of [verdicts.md](verdicts.md) was
asked: from which share of encrypted entries on does no attack of the suite reach the level on more than 5 % of the inputs, with 95 % confidence? An input is
*read* if an attack of the suite reaches the level on it. At the level *attribute* the tolerated rate is 5 % of the inputs that guessing misses: with two
equally frequent classes 52.5 % of all, with ten 14.5 %.

Models are untrained, under three weight initialisations, and clients send the gradient of one input, unless a heading says otherwise. Each interval is the
result of an adaptive search, which adds inputs until the answer is clear. The confidence is one over inputs, under these three initialisations. `(a, b]`
means that encrypting a share *a* was shown not to protect. In bold, encrypting *b* was shown to protect; otherwise the attacks stopped too early or the
inputs ran out first. A suite gives only a lower bound on what attackers can do: read "protects" as "no attack of this suite, with this budget, reads it". All
searches used the budget `quick`: fewer steps than `standard`, and neither LAMP nor Gauss-Newton; where an answer was then tried with the attacks of `standard`,
the suite is named. The label of a suite names the version that was run.

*Only zeros are visible*: every entry that is not 0 is encrypted, so that what protects is that nothing is left to see. Much of an update can be 0, such as
rows of positions and words that do not occur, or one factor of every fresh adapter: longer sentences, denser inputs or adapters that have been trained have
more entries that are not, and then the same share leaves some visible.
"""
RULES = """
## How to use this

- Ask for your own model: `selgrad recommend --dataset ... --model ... --budget quick --check standard` runs the same search, measures the ciphertexts and tries
  its answer on other inputs and weights, with the attacks of the larger budget.
- Where two metrics do not differ significantly, take the one that is cheaper to compute, or `random`, whose choice reveals nothing.
- Where the answer is that everything must be encrypted, send less instead: adapters, all of them encrypted, are listed as an alternative by `recommend`.
- What is missing above has not been measured: batches, trained weights and other architectures may be easier or harder to read.
"""


def _protecting(row: Any, records: pd.DataFrame) -> str:
    """What a search ended with, in a cell of a table; `records` are those of the setting."""
    unresolved = f", {row['unresolved']} unresolved" if row["unresolved"] else ""
    read = f"{row['read']} of {row['num_cells']} read{unresolved}"
    at = records[(records["metric_label"] == row["metric"].split(" / ")[0]) & (records["ratio"] == row["ratio"])]["visible_per_unknown"]
    if len(at) and not at.fillna(1).any():
        read += "; only zeros are visible"
    if row["verdict"] == "attacks fail":
        return "attacks fail with nothing encrypted"
    if row["verdict"] == "encrypt everything":
        return f"none shown, more than {row['low']:g}"
    if row["verdict"] == "protected":
        return f"**({row['low']:g}, {row['ratio']:g}]**; {read}"
    return f"({row['low']:g}, {row['ratio']:g}]: {row['verdict']}; {read}"


def _differences(answer: Any) -> list[str]:
    """Pairs of metrics under one of which fewer inputs are read, at the ratios where that is significant."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for one in answer["differences"]:
        if one["p_corrected"] < 0.05:
            better, worse = (one["first"], one["second"]) if one["only_first"] < one["only_second"] else (one["second"], one["first"])
            fewer, more = sorted((one["only_first"], one["only_second"]))
            pairs.setdefault((better, worse), []).append(
                f"{one['ratio']:g} (of {one['num_pairs']} inputs attacked under both, {fewer} are read only under the first and {more} only under the second)"
            )
    return [f"- Fewer inputs are read under `{better}` than under `{worse}` at {'; '.join(found)}." for (better, worse), found in sorted(pairs.items())]


def _checked(found: Any) -> str:
    """How the advice fared on inputs that had no part in it."""
    if not found:
        return ""
    left = f", {found['unresolved']} unresolved" if found["unresolved"] else ""
    read = f"{found['read']} of {found['num_cells']} read{left} (at most {found['bound']:.1%})"
    by = f" by `{found['suite']}`" if "suite" in found else ""
    return f"on other inputs and weights, at {found['ratio']:g}{by}: {read}: {found['verdict']}."


def _everything(table: Any) -> str:
    """Why everything is to be encrypted: nothing else protects, or what does is dearer."""
    partly = [f"{100 * row['ratio']:g} % by `{row['metric']}`" for row in table if row["verdict"] == "protected"]
    if not partly:
        return "At this level nothing but encrypting everything was shown to protect."
    others = ", ".join(partly)
    return f"Encrypting everything takes the fewest bytes at this level: {others} would protect as well, but then the list of encrypted entries is sent too."


SUMMARY = """
## In short

The smallest share of encrypted entries at which no attack made an input recognisable, that is, identified it among 1,000 others. **Bold**: fewer than 5 % of
the inputs are read, with 95 % confidence. *None shown*: no share that was tried, up to 99.9 %, was shown to protect; in parentheses the largest share that
was shown *not* to. Between that share and 100 % attacks stopped too early, or inputs ran out, before an answer was clear.
"""
PICTURE = """
![The share of encrypted entries that protects, by model, metric and level](figures/protecting.png)

Each line runs from the largest share that was shown not to protect to the smallest at which the search ended; a filled marker means that this share was shown
to protect. An arrow means that no share that was tried was shown to protect.
"""
_MODELS = {
    "bert": "BERT, 2 layers", "bert-lora": "BERT, fresh LoRA of rank 32", "bert-fedavg": "BERT, 5 local steps", "gpt2": "GPT-2, 2 layers",
    "lenet-10": "LeNet, 10 classes", "lenet-10-trained": "LeNet, trained", "lenet-100": "LeNet, 100 classes", "mlp": "MLP, sigmoid",
    "mlp-fedavg": "MLP, sigmoid, 5 local steps", "mlp-trained": "MLP, sigmoid, trained", "mlp-relu-batch-8": "MLP, relu, batches of 8",
    "cnn": "CNN", "resnet20-trained": "ResNet-20, trained", "vit": "ViT",
}  # fmt: skip
_DATA = {"cola": "CoLA", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def _metric(label: str) -> str:
    """A metric's short name: sensitivity to inputs, however its norms are estimated, is one."""
    return "sensitivity (inputs)" if label.startswith("sensitivity(") and "target=inputs" in label else label


def summary() -> str:
    """What is shared by README and the guidelines: per model and metric the share that protects, at the level of recognition."""
    rows = sorted(_result("suites")["rows"], key=lambda row: row["title"])
    tables = [({_metric(one["metric"]): one for one in answer["table"]}, row) for row in rows for answer in row["answers"] if answer["level"] == "recognisable"]
    metrics = sorted({metric for table, _ in tables for metric in table}, key=lambda name: (name != "magnitude", name))

    def cell(one: Any) -> str:
        if one is None:
            return ""
        if one["verdict"] in ("attacks fail", "encrypt everything"):
            return f"none shown (> {100 * one['low']:g} %)" if one["verdict"] == "encrypt everything" else "attacks fail"
        share = f"{100 * one['ratio']:g} %"
        read = f"{one['read']} of {one['num_cells']} read"
        return f"**{share}** ({read})" if one["verdict"] == "protected" else f"{share}, {one['verdict']} ({read}, {one['unresolved']} open)"

    return _rows(["model, data", *metrics], [[_named(row), *(cell(table.get(metric)) for metric in metrics)] for table, row in tables])


def _named(row: Any) -> str:
    """A setting of the suites by its model and data set, and whether its attackers know the labels."""
    known = ", labels known" if _knows_labels(row) else ""
    return f"{_MODELS.get(row['setting'], row['setting'])}, {_DATA.get(row['title'].split('(')[0].split(' /')[0], '')}{known}"


def _knows_labels(row: Any) -> bool:
    return bool(pd.read_parquet(_records(row), columns=["known_labels"])["known_labels"].all())


def _records(row: Any) -> Path:
    return HERE.parent / "benchmarks" / "results" / f"suites-{row['setting']}-{row['budget']}.parquet"


def searched() -> pd.DataFrame:
    """The ends of all searches as `selgrad.report.figures.protecting` draws them: per setting, metric and level the share that protects, and its interval."""
    rows = []
    for row in sorted(_result("suites")["rows"], key=lambda row: row["title"]):
        for answer in sorted(row["answers"], key=lambda answer: ("exact", "recognisable", "attribute").index(answer["level"])):
            for end in answer["table"]:
                nothing_less = end["verdict"] in ("encrypt everything", "attacks fail")
                rows.append(
                    {
                        "setting": _named(row),
                        "metric": _metric(end["metric"]),
                        "level": answer["level"],
                        "ratio": float("inf") if nothing_less else end["ratio"],
                        "low": end["low"],
                        "high": float("inf") if nothing_less else end["ratio"],
                        "read_at": float("nan"),
                        "num_inputs": max(other["num_cells"] for other in answer["table"]),
                        "resolved": end["verdict"] in ("protected", "encrypt everything", "attacks fail"),
                    }
                )
    return pd.DataFrame(rows)


def draw() -> None:
    """Draws the figure of the guidelines, and keeps the numbers behind it."""
    table = searched()
    with tempfile.TemporaryDirectory() as scratch:
        figures.protecting(table, Path(scratch), "protecting")
        shutil.copy(Path(scratch) / "protecting.png", HERE / "figures" / "protecting.png")
    table.to_csv(HERE / "figures" / "protecting.csv", index=False)


def guidelines() -> str:
    """The page of advice."""
    parts = [GUIDELINES, SUMMARY, summary(), PICTURE]
    for row in sorted(_result("suites")["rows"], key=lambda row: row["title"]):
        answers = {answer["level"]: answer for answer in row["answers"]}
        tables = {level: {one["metric"]: one for one in answer["table"]} for level, answer in answers.items()}
        metrics = list(dict.fromkeys(metric for table in tables.values() for metric in table))
        records = pd.read_parquet(_records(row), columns=["metric_label", "ratio", "visible_per_unknown"])
        cells = [[f"`{metric}`", *(_protecting(table[metric], records) if metric in table else "" for table in tables.values())] for metric in metrics]
        known = " The attacker knows the labels." if _knows_labels(row) else ""
        parts.append(f"\n## {row['setting']}: {row['title']}\n\nSuite `{row['suite']}`, {row['attack_hours']:.1f} hours of attacks on 2 cores.{known}\n")
        parts.append(_rows(["metric", *tables], cells))
        for level, answer in answers.items():
            listed = "\n".join(_differences(answer)) or "- No two metrics differ significantly on these inputs."
            parts.append(f"\nLevel {level} (McNemar, Holm's correction):\n\n{listed}")
            if answer["chosen"] and tables[level][answer["chosen"]]["ratio"] == 1:
                parts.append("\n" + _everything(answer["table"]))
            elif answer["chosen"]:
                tried = _checked(answer["checked"])
                parts.append(f"\nThe cheapest that protects at this level: `{answer['chosen']}`.{f' {tried[0].upper()}{tried[1:]}' if tried else ''}")
            elif answer["checked"]:
                parts.append(f"\nNothing was shown to protect at this level. `{answer['checked']['arm']}`, left open, {_checked(answer['checked'])}")
        raised = dict.fromkeys(
            f"- {flag['panel'].split(',')[0]}, level {level}: {flag['name']}: {flag['detail'].removesuffix(f': level: {level}')}"
            for level, answer in answers.items()
            for flag in answer["flags"]
        )
        if raised:
            parts.append("\nFlags:\n\n" + "\n".join(raised))
        if row["answers"][0]["left_out"]:
            parts.append("\nLeft out: " + "; ".join(f"{name}, since {why}" if why else name for name, why in row["answers"][0]["left_out"].items()) + ".")
    return "\n".join([*parts, RULES.rstrip()]) + "\n"


CLAIMS = """# Claims about selective encryption, measured

Written by `docs/generate.py` from `benchmarks/results/claims.json` (`benchmarks/claims.py`). Each claim is tested on a model of the kind it was made for. The
suite attacks each input, and its most successful attack counts. Intervals are exact, 95 %. A mask claimed to protect is **refuted** if the interval of the
share of inputs read lies above 5 %, **holds** if it lies below (0 of 72 suffices), and is **open** otherwise. A source may have meant a weaker attack or a
stricter level.

The label of a suite names the version that was run. All claims on images were attacked by earlier versions of the suite, without `bayesian` and `silhouette`.
These were weaker, so what they refuted stays refuted, and what held against them may not hold against today's.
"""
UNTESTED = """
## The abstract of arXiv 2508.04155

Answered by the searches of [../guidelines.md](../guidelines.md), level recognisable (gu2025selective):

- "Magnitude is generally effective against attacks that optimise": **partly**. Under magnitude, significantly fewer inputs are read than under random
  selection on each of the transformers, and than under every other metric on the sigmoid MLP. On LeNet no metric was shown to protect.
- "No single strategy is best everywhere": **holds**. Sensitivity to inputs does as well as magnitude on text and far worse on the MLP; where everything has
  to be encrypted, the choice makes no difference.

## Not testable here

- FAS: its encryption keeps a fixed share and scrambles the bits of what is left, with a key and noise that its abstract does not state.
- The tables of arXiv 2508.04155: the abstract alone could be read.
"""


def _short(label: str) -> str:
    """A label without its arguments, where they are long."""
    return label if len(label) < 60 else label.split("(")[0]


def _claimed(row: Any) -> str:
    """What the measured share says of an arm."""
    protects, leaks = row["high"] <= 0.05, row["low"] > 0.05
    if row["n"] == 0:
        return "attacks fail with nothing encrypted"
    if row["says"] == "leaks":
        return "**holds**" if leaks else "**refuted** for these attacks" if protects else "open"
    return "**refuted**" if leaks else "**holds**" if protects and not row["unresolved"] else "open"


BOUND = """## The bound of arXiv 2509.20476

The Bayesian Cramér-Rao bound of the visible entries bounds the error of any reconstruction (huang2025advancing). Tested on the images of the [attacker
ladder](attackers.md), whose records hold the bound (`certificate_van_trees_mse`, section 5 of [../theory.md](../theory.md)): with the noise that float32's
rounding leaves, and a Gaussian prior fitted to public images. A mask is one metric at one ratio, and only masks whose bound is above 1e-6 say anything.

{table}

**Refuted as a bound on any attacker where the network is a relu, not contradicted where it is smooth.** The attacker below the bound is a decoder trained
on public images. The bound knows a Gaussian of the images' covariance, and of all densities with that covariance it is the one that tells least; and it is
local: it does not see what the pattern of zeros of a relu network, or the choice of the entries that were encrypted, says about an image. So a large bound
must not be read as protection.
"""


def _bounded() -> str:
    """A table of how often an attack's mean error over the inputs of a mask lies below the bound that was published for it."""
    ladder = pd.read_parquet(HERE.parent / "benchmarks" / "results" / "attacker_ladder.parquet")
    ladder = ladder[(ladder["certificate_van_trees_mse"] > 1e-6) & ladder["mse"].notna()]
    mask, cells = ["metric_label", "selector_label", "ratio"], []
    for (dataset, model), records in ladder.groupby(["dataset_label", "model_label"], sort=True):
        means = records.groupby([*mask, "attack_label"]).agg(
            mse=("mse", "mean"), std=("mse", "std"), n=("mse", "size"), bound=("certificate_van_trees_mse", "mean")
        )
        lowest = means.loc[(means["mse"] / means["bound"]).idxmin()]
        half = float(scipy.stats.t.ppf(0.975, lowest["n"] - 1)) * lowest["std"] / math.sqrt(lowest["n"])
        attack = str(lowest.name[-1])
        least = f"{lowest['mse']:.3g} ({lowest['mse'] - half:.2g} to {lowest['mse'] + half:.2g}), `{attack}`, n = {lowest['n']:.0f}"
        below = f"{(means['mse'] < means['bound']).sum()} of {len(means)}"
        cells.append([dataset, f"`{model}`", means.groupby(mask).ngroups, below, f"{lowest['bound']:.3g}", least])
    head = ["images", "model", "masks", "attacks and masks with a mean error below the bound", "a bound", "least mean error in its unit there (95 %)"]
    return _rows(head, cells)


def claims() -> str:
    """The page of claims."""
    every: dict[str, list[Any]] = {}
    for row in _result("claims")["rows"]:
        every.setdefault(row["claim"], []).append(row)
    parts = [CLAIMS]
    for name, rows in every.items():
        read = lambda row: (f"{row['read']} of {row['n']}", f"{row['low']:.0%} to {row['high']:.0%}")
        cells = [[f"`{_short(row['metric'])}`", f"{row['ratio']:.3g}", row["says"], *read(row), row["quality"], _claimed(row)] for row in rows]
        first, said = rows[0], rows[0]["text"][0].upper() + rows[0]["text"][1:]
        parts.append(f"\n## {name}\n\n{said} ({first['source']}). {first['title']}; suite `{first['suite']}`, level {first['level']}.\n")
        parts.append(_rows(["encrypted", "share", "is said to", "read", "interval", "median input", ""], cells))
    return "\n".join([*parts, "\n" + BOUND.format(table=_bounded()), UNTESTED.strip()]) + "\n"


MEMBERS = """# The suites: what each attack adds

Written by `docs/generate.py` from `benchmarks/results/suite_members.json` (`benchmarks/suite_members.py`): members of the suites, budget standard, beside
other candidates, all on the same cells: {masks}. `alone` counts the cells that no other candidate reads; `among members` counts those that no other member
reads, that is, what the suite would lose without this member. A member that adds nothing here stays until the settings for which it was added have been run
(deep relu networks for Inverting Gradients, vision transformers for `april`, sentences after local steps for LAMP). The relu MLP with batches was run with an
earlier suite, which had `idlg` in the place of `bayesian` and `silhouette`, and Inverting Gradients with its published weight: it is left out of the first
table. There `rank_one` alone read 14 of 32 cells exactly.
Images were attacked by version 1 of the suite, in which Inverting Gradients ran with one weight of the total variation.
"""


EARLIER = ("mlp, relu, batch 4",)
"""Settings whose members were those of an earlier suite."""


def _lost(rows: list[Any]) -> str:
    """A table of the cells that nothing but a member of today's suites reads, over all settings in which it was one."""
    cells = []
    today = [spec.label for suite in SUITES.values() for member in suite.members for spec in member.specs("standard")]
    for attack in [attack for attack in dict.fromkeys(row["attack"] for row in rows) if attack in today]:
        of = lambda level, attack=attack: [row for row in rows if (row["attack"], row["level"]) == (attack, level) and row["setting"] not in EARLIER]
        counts = [f"{sum(row['among_members'] for row in of(level))} of {sum(row['num_cells'] for row in of(level))}" for level in ("recognisable", "exact")]
        cells.append([f"`{attack}`", len(of("exact")), *counts])
    return _rows(["member", "settings", "recognisable cells that no other member reads", "exact ones"], cells)


def members() -> str:
    """The page of the suites' members."""
    found = _result("suite_members")
    parts = [
        MEMBERS.format(masks="random, magnitude and sensitivity masks at 0, 0.6, 0.9 and 0.97 for images, random and magnitude at 0, 0.2, 0.6 and 0.9 for text")
    ]
    parts += ["\n## What the suites would lose\n", _lost(found["rows"])]
    head = ["attack", "member", "read", "alone", "among members", "of", "gradient evaluations", "seconds a cell"]
    for setting in dict.fromkeys(row["setting"] for row in found["rows"]):
        for level in ("recognisable", "exact"):
            rows = [row for row in found["rows"] if (row["setting"], row["level"]) == (setting, level)]
            cells = [
                [
                    f"`{row['attack']}`", "yes" if row["member"] else "", row["read"], row["alone"], row["among_members"], row["num_cells"],
                    _number(row["num_evaluations"]), _number(row["seconds"]),
                ]
                for row in rows
            ]  # fmt: skip
            parts += [f"\n## {setting}, {level}\n", _rows(head, cells)]
    parts.append("\n## Flags that the members raise\n")
    parts += [f"- {flag['setting']}: {flag['name']} ({flag['panel']}): {flag['detail']}" for flag in found["flags"]] or ["None."]
    return "\n".join(parts) + "\n"


COMMANDS = """# Command line

Written by `docs/generate.py` from the commands themselves. `uv run selgrad ...` runs them in a clone; `selgrad COMMAND --help` prints the same.
Exit codes: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C and 143 after SIGTERM. Names and their arguments are explained by `selgrad list`.
"""


def commands() -> str:
    """The page of all commands and their options."""
    parts = [COMMANDS]
    for name, command in cli.commands.items():
        with click.Context(command, info_name=f"selgrad {name}", terminal_width=100, **command.context_settings) as context:
            parts.append(f"\n## selgrad {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n".join(parts) + "\n"


REFERENCES = """# References

Written by `docs/generate.py` from [references.bib](references.bib). Pages and docstrings name a source by its key.
"""
_ACCENTS = {'\\"o': "ö", '\\"u': "ü", '\\"a': "ä", "\\'c": "ć", "\\'e": "é", "\\'a": "á", "\\'o": "ó", "\\'i": "í", "\\`e": "è", "\\v{c}": "č", "\\v{s}": "š"}


def _field(entry: str, name: str) -> str:
    """A field of a BibTeX entry as text, or nothing."""
    found = re.search(rf"\b{name}\s*=\s*\{{((?:[^{{}}]|\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})*)\}}", entry)
    text = found[1] if found else ""
    for written, letter in _ACCENTS.items():
        text = text.replace("{" + written + "}", letter).replace(written, letter)
    return text.replace("{", "").replace("}", "").replace(" -- ", ": ").replace("--", "-").replace("\\&", "&")


def references() -> str:
    """The page of all sources."""
    rows = []
    for entry in re.split(r"^(?=@)", (HERE / "references.bib").read_text(), flags=re.MULTILINE):
        if key := re.match(r"@\w+\{(\w+),", entry):
            authors = [author.split(",")[0].strip() for author in _field(entry, "author").split(" and ") if author]
            named = f"{authors[0]} et al." if len(authors) > 3 or "others" in authors else ", ".join(authors)
            places = (_field(entry, name) for name in ("booktitle", "journal", "publisher", "institution", "howpublished"))
            place, note = next(filter(None, places), ""), _field(entry, "note")
            title, year = _field(entry, "title"), _field(entry, "year")
            cited = [f"{named} ({year})", title] if named else [f"{title} ({year})"]
            said = ". ".join(filter(None, [*cited, place, note[:1].upper() + note[1:]]))
            rows.append((key[1], said))
    return "\n".join([REFERENCES, *(f'- <a id="{key}"></a>`{key}`: {said}.' for key, said in sorted(rows))]) + "\n"


ROBUSTNESS = """# Interruptions, damage and foreign bytes

What becomes of a run when its process ends at a random moment, when its files are damaged, and when it is given bytes that nobody foresaw. This page is
made from what the commands left.
"""

_KILLS = """
## Ended at random moments

`uv run --extra federation python benchmarks/kills.py`: a process is ended by SIGKILL, SIGTERM or SIGINT in turn, after a time drawn uniformly from that of an
undisturbed run, and the same command is repeated until it finishes. Everything that it leaves is then compared with an undisturbed run, records bit by bit.
*Other codes* are exit codes that are neither the signal's nor 130 or 143: if Ray's native code receives SIGTERM while it starts, it takes it for an error and
aborts. *Tracebacks* include Python's own, if the signal arrives before selgrad is imported, as happened once below.
"""

_DAMAGE = """
## Damaged files

`uv run --extra federation python benchmarks/damage.py`: in a finished folder one bit of a file is flipped, or a file is truncated; then the folder is used as
its owner would use it. *Same*: the damage has no effect, because nothing reads that part (padding) or the file is made again (a figure). *Named*: one line
says what is damaged. *Warned*: the run goes on and says so.
"""

_FUZZ = """
## Foreign bytes

`uv run --extra federation python benchmarks/fuzz.py`: valid inputs with bits, bytes, lengths or pieces altered. For framed formats the checksum is computed
again, so that the parser behind it is tested.
"""


def robustness() -> str:
    """The page of what is lost, damaged and refused."""
    signals = "SIGKILL", "SIGTERM", "SIGINT"
    kills, damage, fuzz = (_result(name)["rows"] for name in ("kills", "damage", "fuzz"))
    ended = [
        [
            row["kind"], f"{row['seconds']:.0f} s", *(row["kills"][name] for name in signals), row["whole_runs"], row["lost"], row["doubled"], row["different"],
            row["tracebacks"], row["other_exit_codes"], row["processes_left"],
        ]
        for row in kills
    ]  # fmt: skip
    counts = ("same", "named", "warned", "wrong and silent", "traceback")
    damaged = [[row["folder"], row["damages"], len(row["kinds"]), *(row["all"].get(name, 0) for name in counts)] for row in damage]
    names = ("read", "refused", "traceback", "hang", "crash")
    given = [[row["target"], row["inputs"], *(row[name] for name in names)] for row in fuzz]
    head = ["", "undisturbed", *signals, "whole runs compared", "lost", "doubled", "different", "tracebacks", "other codes", "processes left"]
    parts = [ROBUSTNESS, _KILLS, _rows(head, ended), _DAMAGE, _rows(["folder of", "damages", "kinds of files", *counts], damaged)]
    return "\n".join([*parts, _FUZZ, _rows(["input", "tried", *names], given)]) + "\n"


def costs() -> str:
    """What encryption costs a federated round, for the page on federated averaging."""
    cells = [
        [
            f"{row['dataset']}, {row['model']}", f"{row['num_parameters']:,}", row["setting"], f"{row['accuracy']:.1%}",
            *(f"{1000 * row[f'{phase}_seconds']:.3g}" for phase in ("train", "encrypt", "add", "decrypt")),
            f"{row['seconds_factor']:.2f}", f"{row['bytes_factor']:.2f}",
        ]
        for row in _result("federation")["rows"]
    ]  # fmt: skip
    head = ["data, model", "parameters", "encrypted", "accuracy after 10 rounds", "training, ms", "encryption, ms", "sum, ms", "decryption, ms"]
    return _rows([*head, "seconds, times plain", "bytes, times plain"], cells)


def hosted() -> str:
    """The notebook for hosted services as they open it: `.ipynb`, with fixed identities of cells so that it changes only where it is edited."""
    notebook = jupytext.read(HERE.parent / "notebooks" / "hosted.py")
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"
    return str(jupytext.writes(notebook, "ipynb")) + "\n"


PAGES = {
    "configuration.md": configuration, "records.md": records, "performance.md": performance, "results/calibration.md": calibration,
    "guidelines.md": guidelines, "results/claims.md": claims, "results/suites.md": members,
    "results/robustness.md": robustness, "cli.md": commands, "references.md": references, "../notebooks/hosted.ipynb": hosted,
}  # fmt: skip

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
    draw()
