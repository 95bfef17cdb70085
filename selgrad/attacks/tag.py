"""TAG: dummy word embeddings whose gradient matches the observed one in squared L2 plus alpha times L1 distance.

Deng et al., "TAG: Gradient Attack on Transformer-based Language Models", Findings of EMNLP 2021 (deng2021tag).
"""

from __future__ import annotations

import optax

from selgrad.attacks.distances import l2_l1
from selgrad.attacks.hidden import Hidden
from selgrad.attacks.kernel import gradient_matching, iterate
from selgrad.attacks.labels import plausible
from selgrad.attacks.minimisers import first_order
from selgrad.attacks.spaces import embeddings
from selgrad.attacks.starts import TextStart
from selgrad.base import Attack
from selgrad.errors import require_positive


def tag(
    *, num_steps: int = 2500, num_restarts: int = 1, hidden: Hidden = "ignore", start: TextStart = "normal", learning_rate: float = 0.1, alpha: float = 0.01
) -> Attack:
    """Runs Adam on ||g' - g||_2^2 + alpha ||g' - g||_1 over all leaves.

    Args:
      num_steps: Adam steps; 2,500 as LAMP's comparison runs it.
      num_restarts: independent starts, the best by the attack's own objective.
      hidden: how encrypted entries are treated.
      start: normal (N(0, 1), as published) or vocabulary (scaled to the mean norm of the embeddings, ours).
      learning_rate: of Adam.
      alpha: weight of the L1 distance; 0.01 as LAMP's comparison has it.
    """
    require_positive(learning_rate=learning_rate)
    kernel = gradient_matching(
        distance=lambda candidate, target: l2_l1(candidate, target, alpha),
        minimiser=lambda _: first_order(optax.adam(learning_rate)),
        hidden=hidden,
        space=embeddings(start),
        label_rule=plausible(),
    )
    return iterate(kernel, num_steps=num_steps, num_restarts=num_restarts)
