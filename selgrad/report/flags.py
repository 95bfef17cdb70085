"""Warnings that follow from the records themselves: symptoms that make a verdict on a defence worth less than it looks.

Carlini et al. 2019 (carlini2019evaluating) list what a broken attack looks like; here every table of records is searched for each of these symptoms. All of
it comes from record files; nothing here imports JAX.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import pandas as pd

from selgrad.report.statistics import paired
from selgrad.report.tables import SETTING, with_labels

RUNGS = ("zero", "average", "ignore", "bounded", "complete", "learned")
"""How attacks treat encrypted entries; each rung knows at least what the one before it knows, except that the last three know different things."""
TOO_OFTEN = 0.1
"""Share of cells above which a symptom is reported."""
TOLERATED = 0.05
"""Share of unread pictures with a sharp certificate above which it is reported: a verdict tolerates as many that are read."""
SIGNIFICANT = 0.05
SHARP = 0.01
"""Posterior mean squared error per pixel (20 dB) below which what is visible determines a picture well enough for anyone to recognise it."""


class Flag(NamedTuple):
    """One warning.

    Attributes:
      name: what is wrong, such as "fails with nothing encrypted".
      panel: which attack on which setting.
      detail: the numbers.
    """

    name: str
    panel: str
    detail: str


_Check: TypeAlias = Callable[[pd.DataFrame], Iterator[Flag]]


def flags(records: pd.DataFrame) -> list[Flag]:
    """Returns every warning that the records raise, in the order of `CHECKS`; checks whose columns older records lack are skipped."""
    if records.empty:
        return []
    table = with_labels(records)
    return [flag for check in CHECKS for flag in check(table)]


def _plain(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the cells with nothing encrypted, by panel."""
    yield from table[table["ratio"] == 0].groupby("panel", sort=True)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def fails_plainly(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags an attack that fails with nothing encrypted."""
    for panel, cells in _plain(table):
        failed = int((~cells["success"].astype(bool)).sum())
        if failed > TOO_OFTEN * len(cells):
            yield Flag("fails with nothing encrypted", panel, f"{_share(failed, len(cells))} of its cells at ratio 0: {cells['success_rule'].iloc[0]}")


def weaker_rung_wins(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags a rung that reads significantly more than one that knows everything it knows, and more."""
    if "attack_arguments" not in table:
        return
    for (setting, same), cells in table.assign(setting=_setting(table), same=_without(table, "hidden")).groupby(["setting", "same"]):
        rungs = [rung for rung in RUNGS if (cells["hidden"] == rung).any()]
        for weak, strong in itertools.combinations(rungs, 2):
            # The last three rungs know different things.
            if {weak, strong} <= set(RUNGS[3:]):
                continue
            yield from _compare(cells, "hidden", weak, strong, "a weaker rung reads more", setting, same)


def doubling_helps(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags an attack that reads significantly more with at least twice the steps."""
    if "attack_arguments" not in table:
        return
    steps = table["attack_arguments"].map(lambda text: json.loads(text).get("num_steps") or 0)
    for (setting, same), cells in table.assign(steps=steps, setting=_setting(table), same=_without(table, "num_steps")).groupby(["setting", "same"]):
        step_counts = sorted(cells["steps"].unique())
        for few, many in itertools.pairwise(step_counts):
            if few and many >= 2 * few:
                yield from _compare(cells, "steps", many, few, "more steps read more", setting, same)


def _compare(cells: pd.DataFrame, by: str, winner: object, loser: object, name: str, setting: str, same: str) -> Iterator[Flag]:
    """Flags that the winner reads significantly more than the loser on the cells that they share, over all metrics and ratios."""
    both = cells[cells[by].isin([winner, loser])]
    # With nothing encrypted all metrics are the same and count once.
    both = both[(both["ratio"] > 0) | ~both.duplicated([name for name in (by, "ratio", "sample", "seed", "selector_label") if name in both])]
    keys = [key for key in ("metric_label", "selector_label", "ratio", "sample") if key in both]
    numbered = both.assign(sample=both.groupby(keys, sort=False).ngroup())
    for row in paired(numbered, by).itertuples():
        more, less = (row.only_first, row.only_second) if row.first == winner else (row.only_second, row.only_first)
        if row.p < SIGNIFICANT and more > less:
            panel = same.partition(" ")[0]
            yield Flag(
                name,
                f"{setting}: {panel}" if setting else panel,
                f"{by}={winner} alone reads {more} cells, {by}={loser} alone {less} (McNemar, p = {row.p:.2g})",
            )


def _setting(table: pd.DataFrame) -> pd.Series:
    """Returns what each attack was run on, "" where all were run on the same setting."""
    varying = [name for name in SETTING if name in table and table[name].nunique() > 1]
    return table[varying].agg(" / ".join, axis=1) if varying else pd.Series("", index=table.index)


def _without(table: pd.DataFrame, key: str) -> pd.Series:
    """Returns each attack with all of its arguments but one."""
    remaining = {text: json.dumps({k: v for k, v in json.loads(text).items() if k != key}, sort_keys=True) for text in table["attack_arguments"].unique()}
    return table["attack"] + " " + table["attack_arguments"].map(remaining)


def restarts_disagree(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags attacks of which some starts converge and others do not, so that more starts would find more."""
    if "restarts_converged" not in table:
        return
    for panel, cells in table.groupby("panel", sort=True):
        reported = cells[cells["restarts_converged"].notna()]
        differ = int(reported["restarts_converged"].between(0, 1, inclusive="neither").sum())
        if differ > TOO_OFTEN * len(reported):
            yield Flag("restarts disagree", panel, f"in {_share(differ, len(reported))} cells some starts match the visible entries and others do not")


def not_converged(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags unsuccessful searches that end before they match what is visible as well as the truth does."""
    if "converged" not in table:
        return
    # An attack in closed form has no search that could end early.
    searched = table[table["objective_at_truth"].notna()] if "objective_at_truth" in table else table
    for panel, cells in searched.groupby("panel", sort=True):
        lost = cells[~cells["success"].astype(bool)]
        early = int((~lost["converged"].astype(bool)).sum())
        if early > TOO_OFTEN * len(cells):
            yield Flag("searches end too early", panel, f"{_share(early, len(cells))} cells are neither read nor searched to the end")


def zero_leaf_used(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags an attack that uses leaves whose gradient is zero, which hold no information."""
    if "attack_report" not in table:
        return
    reported = table[table["attack_report"].fillna("") != ""]
    for panel, cells in reported.groupby("panel", sort=True):
        leaves = {text: _zero(text) for text in cells["attack_report"].unique()}
        used = int(cells["attack_report"].map(lambda text, leaves=leaves: bool(leaves[text])).sum())
        if used:
            named = ", ".join(sorted({leaf for some in leaves.values() for leaf in some})[:3])
            yield Flag("a leaf of zeros is used", panel, f"in {_share(used, len(cells))} cells: {named}")


def _zero(report: str) -> list[str]:
    """Returns the leaves of zeros that a report names; the report of a user's own attack may be any text."""
    try:
        content = json.loads(report)
    except ValueError:
        return []
    return [str(leaf) for leaf in content.get("zero", [])] if isinstance(content, dict) else []


def labels_wrong(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags labels that an attack gets wrong with nothing encrypted, where every published rule recovers them."""
    if "label_correct" not in table:
        return
    for panel, cells in _plain(table):
        inferred = (
            cells[cells["label_correct"].notna() & ~cells["known_labels"].astype(bool)] if "known_labels" in cells else cells[cells["label_correct"].notna()]
        )
        wrong = int((inferred["label_correct"] < 1).sum())
        if wrong > TOO_OFTEN * len(inferred):
            yield Flag("labels are wrong", panel, f"in {_share(wrong, len(inferred))} cells at ratio 0")


def no_better_than_the_mean(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags results, with nothing encrypted or by a decoder at any ratio, that are farther from the truth than the mean of public data, or than grey."""
    if "better_than_prior" not in table:
        return
    for panel, cells in table.groupby("panel", sort=True):
        asked = cells if (cells["hidden"] == "learned").any() else cells[cells["ratio"] == 0]
        worse = int((~asked["better_than_prior"].astype(bool)).sum())
        if worse > TOO_OFTEN * len(asked):
            yield Flag("no better than the mean", panel, f"in {_share(worse, len(asked))} cells")


def certificate_says_otherwise(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags pictures that no attack reads but that what is visible determines: a better attacker will read them, so they are not protected."""
    if not {"certificate_posterior_mse", "mse"} <= set(table.columns):
        return
    mask = [name for name in (*SETTING, "metric_label", "selector_label", "ratio", "sample", "seed") if name in table]
    for panel, cells in table.assign(setting=_setting(table)).groupby("setting", sort=True):
        worst = cells.assign(read=cells["success"].astype(bool)).groupby(mask, sort=False, observed=True)[["read", "certificate_posterior_mse"]].max()
        unread = worst[~worst["read"]]
        sharp = int((unread["certificate_posterior_mse"] < SHARP).sum())
        if sharp > TOLERATED * len(unread):
            detail = f"{_share(sharp, len(unread))} masks that no attack reads leave a posterior MSE below {SHARP:g}"
            yield Flag("the certificate says otherwise", str(panel) or "all attacks", detail)


def several_sources(table: pd.DataFrame) -> Iterator[Flag]:
    """Flags records that more than one version of selgrad's code has made: a suite's hash covers its attacks' arguments, and not how they work."""
    if "selgrad_source" not in table:
        return
    made = table["selgrad_source"].fillna("unknown").value_counts()
    if len(made) > 1:
        yield Flag("several versions of the code", "all attacks", ", ".join(f"{count} cells by {source}" for source, count in made.items()))


CHECKS: tuple[_Check, ...] = (
    fails_plainly, weaker_rung_wins, doubling_helps, restarts_disagree, not_converged, zero_leaf_used, labels_wrong, no_better_than_the_mean,
    certificate_says_otherwise, several_sources,
)  # fmt: skip
"""The checks, one for each symptom."""
