"""The choices of defenders: scores of every sample's update, and the resulting masks, computed once per metric, selector and seed.

A block reads the masks of its lanes, records read them again, and so does the comparison of metrics. They are kept packed, an eighth of a byte per entry, at
the counts of the plan; ranks, which are 32 times as large, are computed only for callers that need to know how masks are nested.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from selgrad import devices, topk, trees
from selgrad.base import Batch, GradientContext, Grads, Key, Metric, Model, Params, Ranks, Scores, Selector, Update
from selgrad.errors import UsageError
from selgrad.experiment.types import Client, each_key, seed_key, widen
from selgrad.registry import Spec


@runtime_checkable
class Clients(Protocol):
    """The part of a setting that choosing masks reads."""

    model: Model
    update: Update
    public: Batch | None
    samples: tuple[int, ...]
    always: list[bool]
    num_total: int
    num_rounds: int
    num_pages: int

    @property
    def embedded(self) -> jax.ShapeDtypeStruct:
        """The shape of one batch's embedded inputs."""
        ...

    def page(self, page: int) -> tuple[int, ...]:
        """Returns the samples of a page."""
        ...

    def client(self, seed: int, round_index: int = 0, page: int = 0) -> Client:
        """Returns the updates of a page's samples in a round."""
        ...

    def compiled(self, name: Any, function: Any, *arguments: Any) -> Any:
        """Returns the compiled function; it is compiled once for all seeds."""
        ...


class Chosen(NamedTuple):
    """The masks that the clients of a page choose.

    Attributes:
      bits: (samples, counts, ceil(n / 8)) uint8, as `numpy.packbits` returns them.
      score_seconds, mask_seconds: times per sample.
    """

    bits: Any
    score_seconds: float
    mask_seconds: float


class Choices:
    """Scores and masks on one setting.

    Args:
      setting: the setting whose clients choose.
    """

    def __init__(self, setting: Clients) -> None:
        self._setting = setting
        self.standard_error = functools.cache(self._standard_error)
        # Read by callers that compare two metrics, or the rounds of one.
        self._kept_ranks = functools.lru_cache(maxsize=2 * setting.num_rounds * setting.num_pages)(self._ranks)
        self._counts: tuple[int, ...] = ()
        self.hold(1)

    def hold(self, num_kept: int, counts: Sequence[int] = ()) -> None:
        """Keeps the masks of `num_kept` (metric, selector, seed, page) of each round at `counts` of selected entries; masks kept before are dropped."""
        self._counts, rounds = tuple(sorted(set(counts))), self._setting.num_rounds
        # Always called with all arguments, since a cache treats an omitted default and a passed one as different keys.
        self._kept = functools.lru_cache(maxsize=num_kept * rounds)(self._choose)
        # Read again only by the next selector.
        self._kept_scores = functools.lru_cache(maxsize=rounds)(self._scores)

    def clear(self) -> None:
        """Drops scores, masks and ranks, which are computed again when they are needed."""
        for kept in (self._kept, self._kept_scores, self._kept_ranks):
            kept.cache_clear()

    def masks(self, metric: Spec, selector: Spec, seed: int, round_index: int, page: int, count: int) -> Chosen:
        """Returns the masks of a page's samples at `count` selected entries, (samples, ceil(n / 8)); those of all counts that are held are made together."""
        counts = self._counts if count in self._counts else (count,)
        chosen = self._kept(metric, selector, seed, round_index, page, counts)
        return chosen._replace(bits=chosen.bits[:, counts.index(count)])

    def scores(self, metric: Spec, seed: int, round_index: int = 0, page: int = 0) -> Scores:
        """Returns scores of a page's samples, leading axis (samples,)."""
        return self._kept_scores(metric, seed, round_index, page)[0]

    def ranks(self, metric: Spec, selector: Spec, seed: int, round_index: int) -> tuple[Ranks, float, float]:
        """Returns ranks of every sample (NumPy, leading axis), seconds per sample to score, and seconds per sample to rank."""
        pages = [self._kept_ranks(metric, selector, seed, round_index, page) for page in range(self._setting.num_pages)]
        whole = pages[0][0] if len(pages) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *(ranks for ranks, *_ in pages))
        return whole, *pages[0][1:]

    def _scores(self, metric: Spec, seed: int, round_index: int, page: int) -> tuple[Scores, float]:
        """Returns scores of a page's samples, leading axis (samples,), and seconds per sample after compilation."""
        setting, samples = self._setting, self._setting.page(page)
        client = setting.client(seed, round_index, page)
        score: Metric = metric.build()
        keys = each_key(seed_key(seed, "metric", *[round_index] * (round_index > 0)), samples)

        def every(params: Params, items: tuple[Batch, Grads, Key], public: Batch | None) -> Scores:
            def score_sample(item: tuple[Batch, Grads, Key]) -> Scores:
                batch, grads, key = item
                return score(GradientContext(model=setting.model, params=params, batch=batch, update=setting.update, grads=grads, key=key, public=public))

            return jax.lax.map(score_sample, items)

        arguments = (client.params, (client.batches, client.grads, keys), setting.public)
        double = score.precision == "float64"
        with devices.double_precision() if double else contextlib.nullcontext():
            if double:
                arguments = jax.tree.map(widen, arguments)
            program = setting.compiled((metric, len(samples)), every, *arguments)
            started = time.perf_counter()
            scores = jax.block_until_ready(program(*arguments))
            seconds = (time.perf_counter() - started) / len(samples)
            scores = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), scores) if double else scores
        trees.require_finite(scores, f"the scores of {metric.label}")
        return scores, seconds

    def _standard_error(self, metric: Spec) -> float:
        """Returns the relative standard error of the squared norms that a metric estimates from probes; 0 for an exact metric."""
        score: Metric = metric.build()
        if score.num_probes is None:
            return 0.0
        setting = self._setting
        return score.standard_error(int(np.prod(setting.embedded.shape)), setting.update.batch_size)

    def _choose(self, metric: Spec, selector: Spec, seed: int, round_index: int, page: int, counts: tuple[int, ...]) -> Chosen:
        choose: Selector = selector.build()
        count = len(self._setting.page(page))
        if choose.top_of == "all" and jax.default_backend() == "cpu":
            scores, score_seconds = self._kept_scores(metric, seed, round_index, page)
            started = time.perf_counter()
            bits = np.stack([topk.top_on_host(of_sample, counts, self._setting.always) for of_sample in _each(scores, count)])
            return Chosen(bits, score_seconds, (time.perf_counter() - started) / count)
        # These ranks are not kept, since only masks are read again.
        ranks, score_seconds, mask_seconds = self._ranks(metric, selector, seed, round_index, page)
        started = time.perf_counter()
        flat = [np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(of_sample)]) for of_sample in _each(ranks, count)]
        bits = np.stack([[np.packbits(of_sample < number) for number in counts] for of_sample in flat])
        return Chosen(bits, score_seconds, mask_seconds + (time.perf_counter() - started) / count)

    def _ranks(self, metric: Spec, selector: Spec, seed: int, round_index: int, page: int) -> tuple[Ranks, float, float]:
        setting = self._setting
        scores, score_seconds = self._kept_scores(metric, seed, round_index, page)
        choose: Selector = selector.build()
        first, count = setting.always, len(setting.page(page))
        if choose.top_of == "all" and jax.default_backend() == "cpu":
            started = time.perf_counter()
            each = [topk.rank_on_host(of_sample, first) for of_sample in _each(scores, count)]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *each), score_seconds, (time.perf_counter() - started) / count

        def rank(of_sample: Scores) -> Ranks:
            ranks = choose(of_sample)
            return trees.rank_first(ranks, first) if any(first) else ranks

        if choose.of_cohort is not None:
            if setting.num_pages > 1:
                raise UsageError(
                    f"{selector.label} needs the scores of all {len(setting.samples):,} samples of {setting.num_total:,} entries at once, which do not fit in "
                    "memory; lower count of the data set, or choose another selector"
                )
            started = time.perf_counter()
            shared = choose.of_cohort(scores)
            shared = jax.tree.map(np.asarray, trees.rank_first(shared, first) if any(first) else shared)
            everyone = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape)), shared)
            return everyone, score_seconds, (time.perf_counter() - started) / count

        order = setting.compiled((selector, count), lambda s: jax.lax.map(rank, s), scores)
        started = time.perf_counter()
        ranks = jax.block_until_ready(order(scores))
        mask_seconds = (time.perf_counter() - started) / count
        return jax.tree.map(np.asarray, ranks), score_seconds, mask_seconds


def _each(tree: Any, count: int) -> list[Any]:
    """Returns each sample's part, as NumPy arrays that share the memory of the whole."""
    host = jax.tree.map(np.asarray, tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(count)]
