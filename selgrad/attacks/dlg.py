"""Deep Leakage from Gradients: dummy pixels and soft labels are optimised until their gradient matches the observed one.

Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019 (zhu2019dlg): argmin over x', y' of ||dl(x', y')/dw - g||^2 by L-BFGS.
"""

from __future__ import annotations

from selgrad.attacks.distances import squared_l2
from selgrad.attacks.hidden import Hidden
from selgrad.attacks.kernel import gradient_matching, iterate
from selgrad.attacks.minimisers import lbfgs
from selgrad.attacks.spaces import pixels
from selgrad.attacks.starts import Start
from selgrad.base import Attack


def dlg(
    *,
    num_steps: int = 300,
    num_restarts: int = 1,
    hidden: Hidden = "ignore",
    start: Start = "normal",
    evaluations_per_step: int = 20,
    memory: int = 100,
    max_step: float = 0.1,
) -> Attack:
    """Runs L-BFGS on the squared gradient distance, from images and label logits drawn from N(0, 1).

    Args:
      num_steps: outer iterations; 300 as published.
      num_restarts: independent starts, the best by the attack's own objective.
      hidden: how encrypted entries are treated.
      start: `normal`, N(0, 1) as published, or `grey`, which needs fewer steps.
      evaluations_per_step: gradient evaluations per outer iteration; torch's L-BFGS spends up to 20.
      memory: curvature pairs; 100 as torch keeps; fewer need more evaluations on DLG's LeNet.
      max_step: root mean square by which one evaluation may move the variables; ours: the published loop has no bound (1e9), and some of
        its starts end saturated.
    """
    kernel = gradient_matching(
        distance=squared_l2,
        minimiser=lambda _: lbfgs(memory=memory, max_step=max_step),
        hidden=hidden,
        space=pixels(start),
        evaluations_per_step=evaluations_per_step,
    )
    return iterate(kernel, num_steps=num_steps, num_restarts=num_restarts)
