"""What defenders choose: scores of every sample's update, and their ranks, computed once a metric, selector and seed.

A block reads the ranks of its lanes, records read them again, and so does the comparison of masks; what is kept here is what makes them cheap.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from selgrad import devices, trees
from selgrad.base import Batch, GradientContext, Grads, Key, Metric, Model, Params, Ranks, Scores, Selector, Update
from selgrad.data import Dataset, TextDataset
from selgrad.experiment.types import Client, each_key, fold, widen
from selgrad.registry import Spec


@runtime_checkable
class Clients(Protocol):
    """What choosing reads of a setting."""

    model: Model
    update: Update
    dataset: Dataset | TextDataset
    public: Batch | None
    samples: tuple[int, ...]
    always: list[bool]
    num_samples: int
    num_rounds: int

    def client(self, seed: int, round_index: int = 0) -> Client:
        """Every sample's update of a round."""
        ...

    def compiled(self, name: Any, function: Any, *arguments: Any) -> Any:
        """The function compiled, once for all seeds."""
        ...


class Choices:
    """Scores and ranks on one setting.

    Args:
      setting: whose clients choose.
    """

    def __init__(self, setting: Clients) -> None:
        self._setting = setting
        self.standard_error = functools.cache(self._standard_error)
        self.hold(1)

    def hold(self, count: int) -> None:
        """Keeps the ranks of so many (metric, selector, seed); what was kept is dropped."""
        rounds = self._setting.num_rounds
        # One form of each key: to a cache, a default that is left out and one that is given are two.
        self._kept = functools.lru_cache(maxsize=count * rounds)(self._ranks)
        # Read again by the next selector alone.
        self._kept_scores = functools.lru_cache(maxsize=rounds)(self._scores)

    def clear(self) -> None:
        """Drops scores and ranks, which are computed again when they are asked for."""
        self._kept.cache_clear()
        self._kept_scores.cache_clear()

    def ranks(self, metric: Spec, selector: Spec, seed: int, round_index: int) -> tuple[Ranks, float, float]:
        """Ranks of every sample (NumPy, leading axis), seconds per sample to score, seconds per sample to rank."""
        return self._kept(metric, selector, seed, round_index)

    def _scores(self, metric: Spec, seed: int, round_index: int) -> tuple[Scores, float]:
        """Scores of every sample, leading axis (num_samples,), and seconds per sample after compilation."""
        setting = self._setting
        client = setting.client(seed, round_index)
        score: Metric = metric.build()
        key = fold(jax.random.key(seed), "metric")
        key = fold(key, round_index) if round_index else key
        keys = each_key(key, setting.samples)

        def every(params: Params, items: tuple[Batch, Grads, Key], public: Batch | None) -> Scores:
            def one(item: tuple[Batch, Grads, Key]) -> Scores:
                batch, grads, key = item
                return score(GradientContext(model=setting.model, params=params, batch=batch, update=setting.update, grads=grads, key=key, public=public))

            return jax.lax.map(one, items)

        arguments = (client.params, (client.batches, client.grads, keys), setting.public)
        double = score.precision == "float64"
        with devices.double_precision() if double else contextlib.nullcontext():
            if double:
                arguments = jax.tree.map(widen, arguments)
            program = setting.compiled(metric, every, *arguments)
            started = time.perf_counter()
            scores = jax.block_until_ready(program(*arguments))
            seconds = (time.perf_counter() - started) / setting.num_samples
            scores = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), scores) if double else scores
        trees.require_finite(scores, f"the scores of {metric.label}")
        return scores, seconds

    def _standard_error(self, metric: Spec) -> float:
        """Relative standard error of the squared norms that a metric estimates from probes; 0 for one that is exact."""
        score: Metric = metric.build()
        if score.num_probes is None:
            return 0.0
        setting = self._setting
        batch = setting.dataset.batch(setting.samples[0], setting.update.batch_size)
        embedded = jax.eval_shape(lambda key, inputs: setting.model.embed(setting.model.init(key), inputs), jax.random.key(0), batch.inputs)
        return score.standard_error(int(np.prod(embedded.shape)), setting.update.batch_size)

    def _ranks(self, metric: Spec, selector: Spec, seed: int, round_index: int) -> tuple[Ranks, float, float]:
        setting = self._setting
        scores, score_seconds = self._kept_scores(metric, seed, round_index)
        choose: Selector = selector.build()
        first, count = setting.always, setting.num_samples
        if choose.top_of == "all" and jax.default_backend() == "cpu":
            started = time.perf_counter()
            leaves, treedef = jax.tree.flatten(scores)
            ranks = [np.empty(leaf.shape, np.int32) for leaf in leaves]
            for i in range(count):
                one = trees.rank_on_host([np.asarray(leaf)[i] for leaf in leaves], first)
                for whole, part in zip(ranks, one, strict=True):
                    whole[i] = part
            return jax.tree.unflatten(treedef, ranks), score_seconds, (time.perf_counter() - started) / count

        def rank(one: Scores) -> Ranks:
            ranks = choose(one)
            return trees.rank_first(ranks, first) if any(first) else ranks

        if choose.of_cohort is not None:
            started = time.perf_counter()
            shared = choose.of_cohort(scores)
            shared = jax.tree.map(np.asarray, trees.rank_first(shared, first) if any(first) else shared)
            everyone = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape)), shared)
            return everyone, score_seconds, (time.perf_counter() - started) / count

        order = setting.compiled(selector, lambda s: jax.lax.map(rank, s), scores)
        started = time.perf_counter()
        ranks = jax.block_until_ready(order(scores))
        mask_seconds = (time.perf_counter() - started) / count
        return jax.tree.map(np.asarray, ranks), score_seconds, mask_seconds
