"""DLG on text: dummy word embeddings are optimised until their gradient matches the observed one in squared distance.

Zhu, Liu, Han, NeurIPS 2019 (zhu2019dlg), section 4.3; by Adam, as LAMP's comparison runs it (balunovic2022lamp).
"""

from __future__ import annotations

import optax

from selgrad.attacks.distances import squared_l2
from selgrad.attacks.hidden import Hidden
from selgrad.attacks.kernel import gradient_matching, iterate
from selgrad.attacks.labels import plausible
from selgrad.attacks.minimisers import first_order
from selgrad.attacks.spaces import embeddings
from selgrad.attacks.starts import TextStart
from selgrad.base import Attack
from selgrad.errors import require_positive


def dlg_text(*, num_steps: int = 2500, num_restarts: int = 1, hidden: Hidden = "ignore", start: TextStart = "normal", learning_rate: float = 0.1) -> Attack:
    """Runs Adam on the squared gradient distance and reads off the nearest tokens; labels come from the last layer's gradient where they are not given.

    Args:
      num_steps: Adam steps.
      num_restarts: independent starts, the best by the attack's own objective.
      hidden: how encrypted entries are treated.
      start: normal (N(0, 1), as published) or vocabulary (scaled to the mean norm of the embeddings, ours).
      learning_rate: of Adam.
    """
    require_positive(learning_rate=learning_rate)
    kernel = gradient_matching(
        distance=squared_l2,
        minimiser=lambda _: first_order(optax.adam(learning_rate)),
        hidden=hidden,
        space=embeddings(start),
        label_rule=plausible(),
    )
    return iterate(kernel, num_steps=num_steps, num_restarts=num_restarts)
