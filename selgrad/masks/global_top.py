"""Global top-k: the highest-scoring entries over all leaves together, ties broken by index.

This is the selection of FedML-HE (jin2023fedmlhe) and of arXiv 2508.04155 (gu2025selective).
"""

from __future__ import annotations

from selgrad import trees
from selgrad.base import Selector


def global_top() -> Selector:
    """Ranks all entries of the tree against each other."""
    return Selector(trees.rank, top_of="all")
