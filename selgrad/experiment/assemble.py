"""Assembles the arrays of a block: the updates of the samples that occur in it, and each lane's index into them, its hidden entries, and its start.

All of it is NumPy on the host; a compiled block moves it to the devices at once and assembles the observations there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from selgrad.experiment.setting import Setting
from selgrad.experiment.types import Lane, Lanes, Tables, fold


def _stack(parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *parts)


@jax.jit
def _starts(seeds: Any, samples: Any) -> Any:
    return jax.vmap(lambda seed, row: jax.vmap(lambda i: jax.random.fold_in(fold(jax.random.key(seed), "attack"), i))(row))(seeds, samples)


def num_updates(lanes: Sequence[Sequence[Lane]]) -> int:
    """Returns the largest number of samples that occur in a row of lanes."""
    return max(len({lane.sample for lane in row}) for row in lanes)


def shapes(setting: Setting, num_seeds: int, num_lanes: int, num_updates: int) -> tuple[Tables, Lanes]:
    """Returns the shapes of what `assemble` returns for these sizes; nothing is computed, so that a block too large for memory can be planned.

    Returns:
      The same as `assemble`, with a `jax.ShapeDtypeStruct` in the place of each array.
    """
    params = jax.eval_shape(lambda: setting.model.init(jax.random.key(0)))
    batch = setting.dataset.batch(setting.samples[0], setting.update.batch_size)
    noise = jax.eval_shape(setting.protection.noise, setting.shapes) if setting.protection.changes else None
    of_all = lambda tree, *axes: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), tree)
    rounds, of_lanes = range(setting.num_rounds), (num_seeds, num_lanes)
    tables = Tables(
        weights=tuple(of_all(params, num_seeds) for _ in rounds),
        updates=tuple(of_all(setting.shapes, num_seeds, num_updates) for _ in rounds),
        noise=of_all(noise, num_seeds, num_updates),
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), of_lanes))
    hidden = jax.ShapeDtypeStruct((*of_lanes, -(-setting.num_total // 8)), np.uint8)
    return tables, Lanes(keys, of_all(batch, *of_lanes), jax.ShapeDtypeStruct(of_lanes, np.int32), tuple(hidden for _ in rounds))


def assemble(setting: Setting, seeds: Sequence[int], lanes: Sequence[Sequence[Lane]], num_updates: int) -> tuple[Tables, Lanes]:
    """Returns the arrays of a block.

    Args:
      setting: the setting to read from.
      seeds: one per row.
      lanes: one row of lanes per seed, all of one length.
      num_updates: rows of the tables, at least as many as samples occur in a row of lanes.
    """
    rounds = range(setting.num_rounds)
    rows, updates, noises = [], [], []
    for seed, row in zip(seeds, lanes, strict=True):
        samples = list(dict.fromkeys(lane.sample for lane in row))
        index = np.asarray([lane.sample for lane in row])
        rows.append(
            (
                jax.tree.map(lambda leaf, index=index: leaf[index], setting.batches),
                np.asarray([samples.index(lane.sample) for lane in row], np.int32),
                tuple(np.stack([setting.hidden(lane, t) for lane in row]) for t in rounds),
            )
        )
        held = [*samples, *samples[-1:] * (num_updates - len(samples))]
        updates.append(tuple(_stack([setting.sent(seed, t, sample).grads for sample in held]) for t in rounds))
        noises.append(_stack([setting.noise(seed, sample) for sample in held]))
    # One start per sample and seed, shared by all metrics and ratios, so that differences between them are not due to luck.
    keys = _starts(np.asarray(seeds, np.int32), np.asarray([[setting.samples[lane.sample] for lane in row] for row in lanes], np.int32))
    weights = tuple(_stack([setting.weights(seed, t) for seed in seeds]) for t in rounds)
    return Tables(weights, _stack(updates), _stack(noises)), Lanes(keys, *_stack(rows))
