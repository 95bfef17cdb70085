"""Reconstructions that a sweep keeps beside its records: of the first samples and the first seed, with the truth once a setting.

In which files they lie is their modality's.
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
    """What a setting's clients had, unless it is there."""
    stem, count = folder.gallery_file(f"truth-{index}"), min(config.gallery, setting.num_samples)
    if count and not list(stem.parent.glob(f"{stem.name}.*")):
        setting.modality.keep_truth(stem, jax.tree.map(lambda leaf: leaf[:count], setting.batches))


def keep_gallery(folder: RunFolder, config: SweepConfig, setting: Setting, part: BlockPlan, found: dict[tuple[int, int], LaneResult]) -> None:
    """What a block's attacks made of it."""
    kept = [
        Kept(
            {
                "setting": part.setting, "title": setting.title, "sample": lane.sample, "ratio": lane.ratio, "metric": lane.metric.label,
                "selector": lane.selector.label, "attack": part.attack.label,
            },
            found[i, j],
        )
        for i, row in enumerate(part.lanes)
        for j, lane in enumerate(row)
        if lane.sample < config.gallery and lane.seed == config.seeds[0]
    ]  # fmt: skip
    if kept:
        setting.modality.keep_gallery(folder.gallery_file(part.identity), kept)
