"""Reconstructions that a sweep keeps next to its records: those of the first samples and the first seed, with the truth once per setting.

Their modality decides the file format.
"""

from __future__ import annotations

import jax

from selgrad.config import SweepConfig
from selgrad.experiment import Setting
from selgrad.modality import LaneResult
from selgrad.modality.protocol import Kept
from selgrad.sweep.plan import BlockPlan
from selgrad.sweep.store import RunFolder


def keep_truth(folder: RunFolder, config: SweepConfig, index: int, setting: Setting) -> None:
    """Keeps the true inputs of a setting's clients, unless they are there already."""
    stem, count = folder.gallery_file(f"truth-{index}"), min(config.gallery, setting.num_samples)
    if count and not list(stem.parent.glob(f"{stem.name}.*")):
        setting.modality.keep_truth(stem, jax.tree.map(lambda leaf: leaf[:count], setting.batches))


def keep_gallery(folder: RunFolder, config: SweepConfig, setting: Setting, part: BlockPlan, results: dict[tuple[int, int], LaneResult]) -> None:
    """Keeps what a block's attacks reconstructed."""
    kept = [
        Kept(
            {
                "setting": part.setting, "title": setting.title, "sample": lane.sample, "ratio": lane.ratio, "metric": lane.metric.label,
                "selector": lane.selector.label, "attack": part.attack.label,
            },
            results[i, j],
        )
        for i, row in enumerate(part.lanes)
        for j, lane in enumerate(row)
        if lane.sample < config.gallery and lane.seed == config.seeds[0]
    ]  # fmt: skip
    if kept:
        setting.modality.keep_gallery(folder.gallery_file(part.identity), kept)
