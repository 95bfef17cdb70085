"""The advice for one model: the cheapest metric and ratio at which no attack of a suite gets more than a level allows, with a confidence, and its costs.

It rests on an adaptive search for each metric (`selgrad.suites.search`), on costs measured with real CKKS on the selections that the search ends with, and on
a check with other inputs and other weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from selgrad import files
from selgrad.config import SweepConfig, parse
from selgrad.errors import UsageError, require_ratio
from selgrad.experiment import Setting
from selgrad.registry import Spec
from selgrad.report.flags import Flag, flags
from selgrad.report.verdicts import contributions, reached
from selgrad.suites.check import Checked, tried
from selgrad.suites.costs import Alternative, costs_of
from selgrad.suites.decide import Answer, Question, Wanted
from selgrad.suites.members import Budget, Suite, suite_for
from selgrad.suites.search import Runner, Search, answers, tried_by_all
from selgrad.sweep.executors.protocol import Executor
from selgrad.sweep.run import OnEvent
from selgrad.sweep.runner import run_sweep

METRICS: tuple[Any, ...] = ("random", "magnitude", {"name": "sensitivity", "target": "inputs"}, "product")
"""The metrics that are compared where the configuration names none."""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The result of `recommend`.

    Attributes:
      title: data set, model and update.
      suite: label of the suite.
      question: the question that was asked, with the rate that guessing reaches.
      table: one row per metric and selector: `metric`, `verdict`, `ratio`, `low`, `num_cells`, `unresolved`, `bound`, `bytes` (a client's ciphertexts and
        index list) and `seconds` (to encrypt them), both NaN where OpenFHE does not load, and `visible_per_unknown`, entries other than 0 that are visible at
        `ratio` for each unknown of the input; cheapest first.
      alternatives: what else can be done, and what it costs; empty where OpenFHE does not load.
      chosen: label of the cheapest that protects; None where none does.
      attacks: as `selgrad.report.verdicts.contributions` returns them; each is tried on what the ones before it did not read.
      left_out: attacks of the suite that cannot be run here, and why.
      flags: warnings.
      num_cells, num_grid: number of attacks that were run, and that every attack on as many inputs at every ratio would have taken.
      checked: the check on fresh inputs; None where it was not requested, or there is nothing to try.
      note: a remark on the costs.
    """

    title: str
    suite: str
    question: Question
    table: pd.DataFrame
    alternatives: list[Alternative]
    chosen: str | None
    attacks: pd.DataFrame
    left_out: dict[str, str]
    flags: list[Flag]
    num_cells: int
    num_grid: int
    checked: Checked | None = None
    note: str = ""

    def document(self) -> dict[str, Any]:
        """Returns all fields as values that JSON can hold."""
        whole = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: json.loads(value.to_json(orient="records")) for name, value in whole.items() if isinstance(value, pd.DataFrame)}
        nested = {name: dataclasses.asdict(value) for name, value in whole.items() if dataclasses.is_dataclass(value) and not isinstance(value, type)}
        return {**whole, **plain, **nested, "flags": [flag._asdict() for flag in self.flags], "alternatives": [other._asdict() for other in self.alternatives]}


def configured(given: Mapping[str, Any], suite: str | None, budget: Budget, ratios: Sequence[float]) -> tuple[SweepConfig, Suite, dict[str, str]]:
    """Returns the configuration of a sweep by the attacks of a suite.

    Args:
      given: keys of a sweep without `attack`, `ratio` and `suite`; `metric` may be missing.
      suite: name of the suite; None selects that of the data.
      budget: budget of the suite.
      ratios: the ratios that may be asked for, besides 0.

    Returns:
      Configuration, suite, and which of its attacks cannot be run, with the reason.

    Raises:
      UsageError: for an unknown name or key, more than one setting, or a suite for other data.
    """
    chosen = {"metric": list(METRICS), "seeds": [0, 1, 2], "name": "suite", **given}
    for key in ("attack", "ratio", "suite"):
        if key in given:
            raise UsageError(f"{key}: a suite brings its attacks and is asked for ratios; leave the key out of the configuration, or use `selgrad sweep`")
    # Which attacks can be run is known only once the model is built; until then one stands for them.
    first = parse({**chosen, "attack": "idlg", "ratio": [0.0]})
    for kind in ("dataset", "model", "update", "protection"):
        specs = getattr(first, kind)
        if len(specs) > 1:
            raise UsageError(f"{kind}: {len(specs)} are given ({', '.join(spec.label for spec in specs)}), and a suite needs exactly one; name one")
    setting = Setting(
        first.dataset[0], first.model[0], first.update[0], public=first.public, rounds=first.rounds, protection=first.protection[0], features=first.features
    )
    which = suite_for(setting.modality.name if suite is None else suite)
    if which.name != setting.modality.name:
        raise UsageError(f"suite {which.name!r} is for {which.name}, and {setting.specs[0].label} holds {setting.modality.name}")
    attacks, left = which.attacks(setting, budget)
    changes = {"ratio": tuple(dict.fromkeys([0.0, *ratios])), "suite": which.label(budget), "attack": tuple(attacks)}
    return first.model_copy(update=changes), which, left


def run_suite(
    given: Mapping[str, Any], ratios: Sequence[float], out: str | Path, *, suite: str | None = None, budget: Budget = "standard", wandb: str = "disabled",
    quiet: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Runs or continues a sweep by the attacks of a suite, at given ratios and with nothing encrypted.

    Args:
      given: keys of a sweep (docs/configuration.md) without `attack` and `ratio`.
      ratios: shares of entries to encrypt.
      out: folder, as for any sweep.
      suite: images or text; None selects that of the data.
      budget: quick, standard or full.
      wandb, quiet: as for any sweep.

    Returns:
      The records; `selgrad.report.verdicts.by_level` and `selgrad.report.flags.flags` read them.

    Raises:
      UsageError: for an unknown name or key, more than one setting, or a suite for other data.
      SelgradError: if an attack, a file or the disk fails.
    """
    for ratio in ratios:
        require_ratio(ratio)
    config, _, _ = configured(given, suite, budget, ratios)
    return run_sweep(config, out, wandb=wandb, quiet=quiet)


def recommend(
    given: Mapping[str, Any], out: str | Path, *, question: Question | None = None, suite: str | None = None, budget: Budget = "standard",
    check: bool | Budget = False, on_event: OnEvent = lambda _: None,
) -> Recommendation:  # fmt: skip
    """Finds the cheapest metric and ratio that protect against the attacks of a suite, measured on one's own model and data.

    Args:
      given: keys of a sweep (docs/configuration.md) without `attack` and `ratio`: at least `dataset` and `model`; several `metric`s and `selector`s are
        compared. Every sample is an input, with one of the seeds; a claim of "below 5 %" needs about 100 of them besides the first 18.
      out: folder of the records, continued if it holds the same search; the question may differ.
      question: level, tolerated rate and confidence; by default whether at most 5 % of the inputs are recognisable, with a confidence of 95 %.
      suite: images or text; None selects that of the data.
      budget: quick, standard or full.
      check: whether the answer is tried on as many inputs after these, with other weights; a budget names one for this, such as standard after a search
        with quick: that is many times fewer attacks than searching with standard. Where the search shows nothing to protect, such a check tries the cheapest
        answer that it left unresolved.
      on_event: called with a line whenever something begins.

    Raises:
      UsageError: for an unknown name or key, more than one setting, or a folder that holds something else.
      SelgradError: if an attack, a file or the disk fails.
    """
    keys = {"gallery": 0, "name": "recommend", **given}
    config, which, left = configured(keys, suite, budget, (question or Question()).ratios)
    root = Path(out)
    executor: Executor = Spec.of("engine", "local").build()
    with contextlib.closing(executor):
        search = Search(config, root / "search")
        asked = with_luck(question or Question(), search)
        runner, by_arm = _searched(search, asked, executor, on_event)
        records = search.records()
        table, instead, note = costs_of(search, by_arm, config.encryption, on_event)
        table = table.assign(visible_per_unknown=[_visible(records, search, row) for row in table.itertuples()])
        chosen = str(table["metric"].iloc[0]) if len(table) and table["protects"].iloc[0] else None
        checked, candidate, elsewhere = None, chosen, check not in (False, True, budget)
        if chosen is None and elsewhere:
            candidate = next(iter(table.loc[table["verdict"] == "unresolved", "metric"]), None)
        if check and candidate is not None:
            arm = next(arm for arm in search.arms if arm.label == candidate)
            again = configured(keys, suite, cast(Budget, check), asked.ratios)[0] if elsewhere else config
            checked = tried(again, search, arm, by_arm[candidate], asked, root / "check", executor, on_event)
    judged = reached(records, asked.level)
    # Cells that one attack has read are not tried by the next, so attacks are compared where all of them are run.
    raised = flags(judged[tried_by_all(records, len(config.attack))])
    size = asked.needed(0) + asked.pilot
    grid = len(search.arms) * (len(asked.ratios) - 1) * size * len(config.attack) + size * len(config.attack)
    result = Recommendation(
        search.settings[0].title, which.label(budget), asked, table, instead, chosen, contributions(judged).drop(columns="alone"), left,
        list(dict.fromkeys(raised)), runner.num_known, grid, checked, note,
    )  # fmt: skip
    files.write_text(root / "recommendation.json", json.dumps(_finite(result.document()), indent=1) + "\n")
    return result


def _visible(records: pd.DataFrame, search: Search, row: Any) -> float:
    """Returns the mean number of visible entries other than 0 per unknown of the input, at the ratio of an answer."""
    if row.ratio == 1:
        return 0.0
    arm = next(arm for arm in search.arms if arm.label == row.metric)
    cells = records[(records["ratio"] == row.ratio) & (records["metric_label"] == arm.metric.label) & (records["selector_label"] == arm.selector.label)]
    return float(cells["visible_per_unknown"].mean()) if len(cells) else math.nan


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_luck(question: Question, search: Search) -> Question:
    """Adds to the question what guessing reaches: a class by luck, which is added to the tolerated rate, or one of two identifications among the others."""
    setting = search.settings[0]
    if question.chance > 0:
        return question
    size = setting.update.batch_size
    if question.level == "attribute" and not search.config.known_labels:
        # All labels of a batch.
        chance = setting.input_spec.num_classes**-size
        return dataclasses.replace(question, chance=chance, rate=chance + (1 - chance) * question.rate)
    if question.level == "recognisable":
        # Any input of a batch, by error or by correlation, by any attack.
        chance = 1 - (1 - 1 / max(1, len(setting.others) + 1 - size)) ** (2 * size * len(search.config.attack))
        return dataclasses.replace(question, chance=chance)
    return question


def _searched(search: Search, question: Question, executor: Executor, on_event: OnEvent) -> tuple[Runner, dict[str, Answer]]:
    """Runs a search to its end."""
    with search.lock():
        executor.plan(search, on_event)
        runner = Runner(search, executor, question.level, on_event=on_event)

        def on_round(state: dict[str, Answer | Wanted]) -> None:
            open_arms = [f"{label} at {question.ratios[result.ratio]:g}" for label, result in state.items() if isinstance(result, Wanted)]
            on_event(f"{runner.num_known} attacks so far; open: {', '.join(open_arms) or 'nothing'}")

        by_arm = answers(search, runner, question, on_round)
        search.folder.compact()
    return runner, by_arm
