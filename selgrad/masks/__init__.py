"""Selectors: from scores to nested masks of exactly round(ratio * n) entries, one file each.

A selector returns ranks rather than a mask: the mask at k entries is `rank < k`, so a ratio axis costs one integer per ratio.
"""

from selgrad.masks.aligned import aligned
from selgrad.masks.by_path import by_path
from selgrad.masks.by_structure import by_structure
from selgrad.masks.common import common
from selgrad.masks.global_top import global_top
from selgrad.masks.own import adapt
from selgrad.masks.per_leaf_top import per_leaf_top
from selgrad.masks.randomised import randomised

__all__ = ["SELECTORS", "adapt"]

SELECTORS = {
    "global_top": global_top,
    "per_leaf_top": per_leaf_top,
    "by_path": by_path,
    "by_structure": by_structure,
    "aligned": aligned,
    "common": common,
    "randomised": randomised,
}
