"""LAMP: continuous gradient matching on word embeddings, alternating with discrete moves that a language model scores.

Balunovic, Dimitrov, Jovanovic, Vechev, "LAMP: Extracting Text from Gradients with Language Model Priors", NeurIPS 2022 (balunovic2022lamp).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NoReturn

import jax.numpy as jnp
import optax
from jax import Array

from selgrad import trees
from selgrad.attacks.distances import l2_l1, mean_leaf_cosine
from selgrad.attacks.hidden import Hidden
from selgrad.attacks.kernel import gradient_matching, iterate
from selgrad.attacks.labels import plausible
from selgrad.attacks.minimisers import first_order
from selgrad.attacks.moves import permutations
from selgrad.attacks.spaces import embeddings, text_parts
from selgrad.base import Attack, Key, LanguageModel, Observation
from selgrad.errors import UsageError, require_positive


def unbound(key: Key, observation: Observation) -> NoReturn:
    """Refuses to start an attack whose language model is still a name.

    Raises:
      UsageError: always.
    """
    raise UsageError("this attack names a language model that is not loaded; run it through run_cell or a sweep, or give `bind` the loaded model")


def lamp(
    *,
    num_steps: int = 2000,
    num_restarts: int = 1,
    hidden: Hidden = "ignore",
    distance: Literal["cosine", "l2_l1"] = "cosine",
    language_model: str | LanguageModel | None = None,
    perplexity_weight: float = 0.2,
    learning_rate: float = 0.01,
    decay: float = 0.89,
    alpha: float = 0.01,
    norm_weight: float = 1.0,
    num_starts: int = 500,
    num_start_permutations: int = 500,
    steps_per_phase: int = 75,
    num_moves: int = 200,
    candidates_at_once: int = 4,
) -> Attack:
    """Runs Adam on the gradient distance plus a penalty on the embeddings' mean norm and takes, after every phase, the best of many token orders.

    A step of the attack is one phase, `steps_per_phase` steps of Adam and one search; moves are taken from a tenth of the phases on.

    Args:
      num_steps: Adam steps in all, rounded up to whole phases.
      num_restarts: independent starts, the best by the attack's own objective.
      hidden: how encrypted entries are treated.
      distance: cosine (mean over leaves) or l2_l1, the published pair.
      language_model: folder of a GPT-2 with the clients' tokenizer (from `selgrad train-lm` or Hugging Face); None scores moves by the gradient
        alone.
      perplexity_weight: of the log-perplexity in a move's score.
      learning_rate: of Adam, times `decay` each 50 steps.
      decay: of the learning rate.
      alpha: weight of L1 in l2_l1.
      norm_weight: of the squared difference between the mean norm of the dummies and that of the vocabulary.
      num_starts: random starts that are compared before the first step.
      num_start_permutations: random orders of the best start that are compared.
      steps_per_phase: Adam steps between two searches.
      num_moves: candidates of a search.
      candidates_at_once: candidates of each lane that are scored in one batch; bounds the memory. A block has many lanes, and on a CPU more candidates do not
        fit the cache.
    """
    for name, value in (("steps_per_phase", steps_per_phase), ("num_moves", num_moves), ("candidates_at_once", candidates_at_once)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    require_positive(learning_rate=learning_rate, decay=decay)
    num_phases = -(-num_steps // steps_per_phase)
    schedule = optax.exponential_decay(learning_rate, 50, decay, staircase=True)

    def norm_penalty(observation: Observation, embedded: Array) -> Array:
        table = trees.subtree(observation.params, text_parts(observation)[0].embedding)
        target = jnp.linalg.norm(table, axis=1).mean()
        return norm_weight * (jnp.linalg.norm(embedded, axis=-1).mean() - target) ** 2

    def assemble(model: LanguageModel | None) -> Attack:
        kernel = gradient_matching(
            distance=mean_leaf_cosine if distance == "cosine" else (lambda candidate, target: l2_l1(candidate, target, alpha)),
            regulariser=norm_penalty,
            minimiser=lambda _: first_order(optax.adam(schedule)),
            hidden=hidden,
            space=embeddings(),
            label_rule=plausible(),
            evaluations_per_step=steps_per_phase,
            search=permutations(
                num_starts=num_starts,
                num_start_permutations=num_start_permutations,
                num_moves=num_moves,
                language_model=model,
                perplexity_weight=perplexity_weight,
                first_round=num_phases // 10,
                candidates_at_once=candidates_at_once,
            ),
        )
        return iterate(kernel, num_steps=num_phases, num_restarts=num_restarts)

    if not isinstance(language_model, str):
        return assemble(language_model)
    # The caller loads the model from the folder; until then the attack cannot start.
    return dataclasses.replace(assemble(None), start=unbound, language_model=language_model, bind=assemble)
