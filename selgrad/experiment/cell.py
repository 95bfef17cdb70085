"""One cell, and lanes of one block: what `selgrad.run_cell`, audits and sweeps run.

A cell runs the same code as a sweep, with one lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from selgrad.base import Attack, InputSpec, TextSpec
from selgrad.config import EncryptionConfig, RoundsConfig
from selgrad.errors import UsageError, require_seed
from selgrad.experiment.assemble import assemble, num_updates
from selgrad.experiment.block import Block, Observer
from selgrad.experiment.costs import SchemeCache, encryption_cost
from selgrad.experiment.engine import Engine
from selgrad.experiment.host import HostBlock
from selgrad.experiment.results import decode_lane
from selgrad.experiment.setting import Setting
from selgrad.experiment.threat import TOLD_PADDING, Threat, evidence_for
from selgrad.experiment.types import CellResult, Lane
from selgrad.modality import LaneResult
from selgrad.registry import Spec

OnProgress = Callable[[int, int], None]


def bind(attack: Spec, input_spec: InputSpec | TextSpec) -> tuple[Attack, Any]:
    """Builds the attack, and loads what the attacker brings: the parameters of its language model, where it names one.

    Raises:
      UsageError: if the data are not text, or the language model has a different vocabulary from the clients'.
    """
    built: Attack = attack.build()
    if built.language_model is None or built.bind is None:
        return built, None
    from selgrad.language_model import load

    if not isinstance(input_spec, TextSpec):
        raise UsageError(f"{attack.name} reads text and the data set holds images; choose dlg, idlg or inverting_gradients")
    model, params = load(built.language_model, input_spec)
    return built.bind(model), params


def make_engine(
    setting: Setting, attack: Spec, *, threat: Threat, num_seeds: int, num_lanes: int, chosen_by: tuple[Spec, Spec], model_devices: int = 1
) -> Engine:
    """Makes a compiled block, or one on the host where the attack cannot be traced.

    Args:
      setting: data, model, update.
      attack: spec of the attack.
      threat: what the attacker is told.
      num_seeds, num_lanes: sizes of the two axes.
      chosen_by: metric and selector of the lanes, or of any one lane where the attack does not read masks as evidence.
      model_devices: number of devices that share the weights and gradients of one model; attacks on the host use one.
    """
    built, auxiliary = bind(attack, setting.input_spec)
    observer = Observer(setting, threat, evidence_for(built, setting, *chosen_by))
    if not built.traceable:
        return HostBlock(setting, built, auxiliary, observer, num_seeds=num_seeds, num_lanes=num_lanes)
    return Block(setting, built, auxiliary, observer, num_seeds=num_seeds, num_lanes=num_lanes, model_devices=model_devices)


class LaneRuns(NamedTuple):
    """The result of `run_lanes`: per lane the result and the attack's report, and the seconds of all lanes, without compilation and preparation."""

    found: list[LaneResult]
    reports: list[str]
    seconds: float


def run_lanes(setting: Setting, attack: Spec, lanes: Sequence[Lane], *, threat: Threat = TOLD_PADDING, on_progress: OnProgress | None = None) -> LaneRuns:
    """Runs one attack on lanes of one seed, of one metric and one selector, as one block.

    Args:
      setting: setting of the lanes.
      attack: spec of the attack.
      lanes: one or more lanes.
      threat: what the attacker is told.
      on_progress: called with (steps done, steps in all) about every twentieth of the attack.
    """
    first = lanes[0]
    engine = make_engine(setting, attack, threat=threat, num_seeds=1, num_lanes=len(lanes), chosen_by=(first.metric, first.selector))
    padded = [*lanes, *[lanes[-1]] * (engine.num_lanes - len(lanes))]
    arrays = assemble(setting, [first.seed], [padded], num_updates([padded]))
    engine.compile(*arrays)
    held, prepared = engine.observe(*arrays)
    started, total = time.perf_counter(), engine.num_steps
    state, done = engine.start(held), 0
    chunk = total if on_progress is None else max(1, total // 20)
    while done < total:
        state = jax.block_until_ready(engine.advance(held, state, min(chunk, total - done)))
        done = min(total, done + chunk)
        if on_progress is not None:
            on_progress(done, total)
    outcome, reports = engine.finish(held, state)
    outcome = jax.device_get(outcome)
    seconds = time.perf_counter() - started
    all_reports = {**prepared, **reports}
    return LaneRuns(
        [decode_lane(setting, outcome, 0, j, lane) for j, lane in enumerate(lanes)], [all_reports.get((0, j), "") for j in range(len(lanes))], seconds
    )


def run_cell(
    *,
    dataset: Any,
    model: Any,
    attack: Any,
    metric: Any = "magnitude",
    ratio: Any = 0.0,
    update: Any = "gradient",
    selector: Any = "global_top",
    sample: int = 0,
    seed: int = 0,
    known_labels: bool = False,
    known_padding: bool = True,
    public: Any = None,
    rounds: Any = None,
    protection: Any = "none",
    encryption: Any = None,
    on_progress: OnProgress | None = None,
) -> CellResult:
    """Runs one cell: the same code as a sweep, with one lane.

    Args:
      dataset, model, attack, metric, update, selector: a name, a mapping of `name` and arguments, or an object of your own (docs/bring_your_own.md): a pair of
        arrays, a Flax module, a function of a gradient pytree, an `Attack`.
      ratio: share of entries to encrypt, a number in [0, 1].
      sample: index of the batch in the data set.
      seed: seed of weights, metric and attack.
      known_labels: whether the attacker is given the labels.
      known_padding: whether it is told which positions of a text are padding.
      public: a data set that everyone has, for amortised metrics and learned attackers.
      rounds: a mapping of `count` and `server_learning_rate`: the attacker has `count` updates of the same data; None means one.
      protection: what the client does to its update besides encrypting.
      encryption: a mapping of `profile`, `num_clients`, `bound`, to encrypt the selection with CKKS and measure its cost; None leaves that out.
      on_progress: called with (steps done, steps in all) about every twentieth of the attack.

    Raises:
      UsageError: for an unknown name or argument, an object that cannot be used, or a ratio outside [0, 1], or a seed outside 0 .. 2**31 - 1.
      EncryptionError: where OpenFHE does not load, or the round trip is not exact.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise UsageError(f"ratio={ratio!r} is not a number; run_cell takes one share of entries in [0, 1], and run_sweep a list of them")
    require_seed(seed)
    options = EncryptionConfig.parse(encryption)
    specs = Spec.of("dataset", dataset), Spec.of("model", model), Spec.of("update", update)
    learned = None if public is None else Spec.of("dataset", public)
    setting = Setting(*specs, [sample], learned, RoundsConfig.parse(rounds), Spec.of("protection", protection))
    lane = Lane(seed, 0, Spec.of("metric", metric), Spec.of("selector", selector), ratio)
    selected = setting.num_selected(ratio)
    cost = None if options is None else encryption_cost(setting, lane, SchemeCache(options))
    ran = run_lanes(setting, Spec.of("attack", attack), [lane], threat=Threat(known_labels, known_padding), on_progress=on_progress)
    result = ran.found[0]
    truth, shown = setting.modality.shown(jax.tree.map(lambda leaf: leaf[0], setting.batches), result)
    return CellResult(
        measures=result.measures,
        truth=truth,
        reconstruction=shown,
        labels=result.labels,
        num_selected=selected,
        num_total=setting.num_total,
        num_visible=setting.num_visible(lane),
        seconds=ran.seconds,
        cost=cost,
        report=ran.reports[0],
    )
