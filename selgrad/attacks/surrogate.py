"""Many local steps at the cost of a few: the client's whole update is compared with gradients at weights between those before and after it.

Zhu, Yao, Blaschko, "Surrogate Model Extension (SME): A Fast and Accurate Weight Update Attack on Federated Learning", ICML 2023 (zhu2023surrogate).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from selgrad.attacks.distances import cosine
from selgrad.attacks.hidden import Hidden
from selgrad.attacks.inverting_gradients import signed_adam_in_box
from selgrad.attacks.kernel import gradient_matching, iterate
from selgrad.attacks.labels import rule_for
from selgrad.attacks.priors import total_variation
from selgrad.attacks.spaces import pixels
from selgrad.attacks.starts import Start
from selgrad.attacks.trials import likely_images
from selgrad.base import Attack, Observation, Params
from selgrad.errors import UsageError, require_positive


def between(observation: Observation, position: float) -> Params:
    """Returns weights that lie at this fraction of the way to the client's weights after its steps, as far as these are visible.

    Args:
      observation: of one round.
      position: 0 for the weights before the local steps, 1 for those after them.
    """
    model = observation.model
    before, frozen = model.split(observation.params)
    # Encrypted entries count as unchanged.
    after = observation.update.new_params(before, observation.visible)
    return model.merge(jax.tree.map(lambda old, new: old + position * (new - old), before, after), frozen)


def surrogate(
    *,
    num_steps: int = 4800,
    num_restarts: int = 1,
    hidden: Hidden = "ignore",
    start: Start = "normal",
    learning_rate: float = 0.1,
    total_variation_weight: float = 0.01,
    positions: Sequence[float] = (0.0, 0.25, 0.5),
) -> Attack:
    """Runs Inverting Gradients on gradients in place of all local steps, which is as fast for a hundred of them as for one.

    The published attack optimises one position by gradient descent from 0.5; here the best of a few counts at each step (ours), since a client that memorises
    its one picture in the first steps sends little but its first gradient. For a client that sends its gradient this is `inverting_gradients`.

    Args:
      num_steps: Adam steps.
      num_restarts: independent starts, the best by the attack's own objective.
      hidden: how encrypted entries are treated.
      start: `normal` or `grey`.
      learning_rate: of Adam.
      total_variation_weight: as in `inverting_gradients`.
      positions: of the weights, from 0 (before the local steps) to 1 (after them); each costs one gradient per step.

    Raises:
      UsageError: if there are no positions, or one is not in [0, 1], or `hidden` is `bounded`, whose evidence needs the client's own update.
    """
    if not positions or not all(0 <= position <= 1 for position in positions):
        raise UsageError(f"positions={list(positions)} must lie between 0, the weights before the local steps, and 1, those after them, and there must be one")
    if hidden == "bounded":
        raise UsageError("hidden='bounded' scores the client's own update, which this attack does not simulate; take another rung, or inverting_gradients")
    require_positive(learning_rate=learning_rate)
    kernel = gradient_matching(
        distance=cosine,
        regulariser=lambda _, images: total_variation_weight * total_variation(images),
        minimiser=signed_adam_in_box(learning_rate, num_steps),
        hidden=hidden,
        space=pixels(start),
        label_rule=rule_for(hidden),
        trial=likely_images(),
        surrogates=lambda observation: [between(observation, position) for position in positions],
    )
    return iterate(kernel, num_steps=num_steps, num_restarts=num_restarts)
