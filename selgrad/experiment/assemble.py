"""From the lanes of a block to its arrays: which sample's batch, which entries are visible, which start.

All of it is NumPy on the host; a compiled block moves it to the devices at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selgrad.base import Params
from selgrad.experiment.setting import Setting
from selgrad.experiment.types import Lane, Lanes, Shown, fold


def _stack(parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *parts)


def _shown(setting: Setting, seed: int, row: Sequence[Lane], round_index: int) -> Shown:
    """What the attackers of a row see of one round, leading axis (lanes,)."""
    leaves, treedef = jax.tree.flatten(setting.client(seed, round_index).grads)
    host = [np.asarray(leaf) for leaf in leaves]
    visible = [np.empty((len(row), *leaf.shape[1:]), leaf.dtype) for leaf in host]
    mask = [np.empty(leaf.shape, bool) for leaf in visible]
    for j, lane in enumerate(row):
        for k, hidden in enumerate(setting.hidden(seed, round_index, lane)):
            mask[k][j] = hidden
            visible[k][j] = np.where(hidden, 0, host[k][lane.sample])
    return Shown(jax.tree.unflatten(treedef, visible), jax.tree.unflatten(treedef, mask))


@functools.lru_cache(maxsize=1)
def _starts() -> Any:
    return jax.jit(lambda seed, samples: jax.vmap(lambda i: jax.random.fold_in(fold(jax.random.key(seed), "attack"), i))(samples))


def shapes(setting: Setting, num_seeds: int, num_lanes: int) -> tuple[tuple[Params, ...], Lanes]:
    """What `assemble` gives for so many seeds and lanes, as shapes: nothing is computed, so that a block too large for memory can be planned.

    Returns:
      As `assemble`, with a `jax.ShapeDtypeStruct` in the place of each array.
    """
    params = jax.eval_shape(setting.model.init, jax.random.key(0))
    sent, batch = setting.model.split(params)[0], setting.dataset.batch(setting.samples[0], setting.update.batch_size)
    noise = jax.eval_shape(setting.protection.noise, sent) if setting.protection.changes else None
    of_all = lambda tree, dtype=None: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_seeds, num_lanes, *leaf.shape), dtype or leaf.dtype), tree)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (num_seeds, num_lanes)))
    weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_seeds, *leaf.shape), leaf.dtype), params)
    shown = Shown(of_all(sent), of_all(sent, bool))
    return (weights,) * setting.num_rounds, Lanes(keys, of_all(batch), (shown,) * setting.num_rounds, of_all(noise))


def assemble(setting: Setting, seeds: Sequence[int], lanes: Sequence[Sequence[Lane]]) -> tuple[tuple[Params, ...], Lanes]:
    """The arrays of a block.

    Args:
      setting: to read from.
      seeds: one per row.
      lanes: one row of lanes per seed, all of one length.

    Returns:
      Each round's parameters with leading axis (seeds,), and lanes with leading axes (seeds, lanes).
    """
    rows, rounds = [], range(setting.num_rounds)
    for seed, row in zip(seeds, lanes, strict=True):
        client = setting.client(seed)
        index = np.asarray([lane.sample for lane in row])
        take = functools.partial(jax.tree.map, lambda leaf, index=index: np.asarray(leaf)[index])
        rows.append(
            Lanes(
                # One start per sample and seed, shared by all metrics and ratios: differences between them are not luck.
                key=_starts()(seed, jnp.asarray(setting.samples)[index]),
                batch=take(client.batches),
                sent=tuple(_shown(setting, seed, row, t) for t in rounds),
                noise=take(client.noise),
            )
        )
    keys = jnp.stack([row.key for row in rows])
    stacked = Lanes(keys, *_stack([row[1:] for row in rows]))
    weights = tuple(_stack([setting.client(seed, t).params for seed in seeds]) for t in rounds)
    return weights, stacked
