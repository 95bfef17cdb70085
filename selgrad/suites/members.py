"""The attacks that a verdict rests on: a small, frozen, parameter-free set for each kind of data, whose strongest member decides.

It follows RobustBench's standard set of attacks on classifiers (Croce and Hein 2020, croce2020reliable): the members are diverse and have nothing to tune, and
the verdict on a sample is that of the attack that gets most. Any change to a member, or to a default of its attack, changes the hash and needs a new version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from selgrad.attacks.april import reads_patches
from selgrad.attacks.rank_one import pixel_layer
from selgrad.base import TextModel
from selgrad.errors import UsageError, did_you_mean
from selgrad.experiment import Setting
from selgrad.registry import Spec, make_spec

Budget = Literal["quick", "standard", "full"]
BUDGETS: tuple[Budget, ...] = ("quick", "standard", "full")
"""How much each attack may spend: a first look; what verdicts rest on; and four starts of both that and twice its steps, with Gauss-Newton where it fits."""

_JACOBIAN = 1 << 29
"""Size in bytes of an update's Jacobian beyond which Gauss-Newton is left out, the same on every machine: 512 MB."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One attack of a suite.

    Attributes:
      attack: name of the attack.
      arguments: for each budget a tuple of the arguments with which it is run; missing where the budget leaves the attack out.
      missing: a setting -> why the attack cannot be run on it, "" where it can.
      why: what it adds to the suite.
    """

    attack: str
    arguments: Mapping[Budget, tuple[Mapping[str, Any], ...]]
    missing: Callable[[Setting], str]
    why: str

    def specs(self, budget: Budget) -> tuple[Spec, ...]:
        """Returns the attacks of a budget."""
        return tuple(make_spec("attack", self.attack, dict(arguments)) for arguments in self.arguments.get(budget, ()))


@dataclasses.dataclass(frozen=True)
class Suite:
    """A frozen set of attacks.

    Attributes:
      name: name of the kind of data.
      version: raised whenever anything in the suite changes.
      members: the attacks, cheapest first.
    """

    name: str
    version: int
    members: tuple[Member, ...]

    def hash(self, budget: Budget) -> str:
        """Returns eight hexadecimal digits of a hash of all arguments of all members, defaults included."""
        content = [self.name, self.version, [[spec.name, *spec.arguments] for member in self.members for spec in member.specs(budget)]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def label(self, budget: Budget) -> str:
        """Returns name, version, budget and hash, as records hold them."""
        return f"{self.name}-v{self.version}-{budget}-{self.hash(budget)}"

    def attacks(self, setting: Setting, budget: Budget) -> tuple[list[Spec], dict[str, str]]:
        """Returns the attacks that can be run on a setting, cheapest first, and why the others cannot.

        Raises:
          UsageError: if none can.
        """
        chosen: list[Spec] = []
        left: dict[str, str] = {}
        for member in self.members:
            reason = member.missing(setting) or ("" if member.specs(budget) else f"budget {budget} leaves it out")
            if reason:
                left[member.attack] = reason
            else:
                chosen.extend(member.specs(budget))
        if not chosen:
            raise UsageError(f"suite {self.name}: none of its attacks can run in this setting ({'; '.join(f'{name}: {why}' for name, why in left.items())})")
        return chosen, left


def _anywhere(setting: Setting) -> str:
    return ""


def _reads_pixels(setting: Setting) -> str:
    return "" if pixel_layer(setting.shapes, setting.input_spec) else "no dense layer reads the pixels"  # type: ignore[arg-type]


def _shows_rows(setting: Setting) -> str:
    return "reads one image, and a client holds several" if setting.update.batch_size > 1 else _reads_pixels(setting)


def _reads_patches(setting: Setting) -> str:
    if setting.update.batch_size > 1:
        return "reads one image, and a client holds several"
    return "" if reads_patches(setting.shapes, setting.input_spec) else "no layer reads patches beside positions of as many tokens"  # type: ignore[arg-type]


def _small(setting: Setting) -> str:
    coordinates = setting.update.batch_size * int(np.prod(setting.input_spec.shape))
    size = 4 * coordinates * setting.num_total
    return "" if size <= _JACOBIAN else f"a Jacobian of {size / 1e9:.1f} GB"


def _transformer(setting: Setting) -> str:
    return "" if isinstance(setting.model, TextModel) else "the model does not say which of its leaves read attention inputs"


def _one_label(setting: Setting) -> str:
    return "every position has a label" if setting.input_spec.label_shape else ""


def _fixed(**arguments: Any) -> dict[Budget, tuple[Mapping[str, Any], ...]]:
    return dict.fromkeys(BUDGETS, (arguments,))


def _spent(quick: int, standard: int, **arguments: Any) -> dict[Budget, tuple[Mapping[str, Any], ...]]:
    """Gives the same attack more steps with each budget; `full` runs four starts with the standard steps and with twice as many, so that both are compared."""
    run = lambda steps, **more: {**arguments, "num_steps": steps, **more}
    return {
        "quick": (run(quick),) if quick else (),
        "standard": (run(standard),),
        "full": (run(standard, num_restarts=4), run(2 * standard, num_restarts=4)),
    }


def _either(*ways: dict[Budget, tuple[Mapping[str, Any], ...]]) -> dict[Budget, tuple[Mapping[str, Any], ...]]:
    """Runs an attack in several ways, of which the best counts on each input."""
    return {budget: tuple(arguments for way in ways for arguments in way.get(budget, ())) for budget in BUDGETS}


_SPARSE = {"start": "vocabulary", "learning_rate": 0.01}

SUITES: dict[str, Suite] = {
    "images": Suite(
        "images",
        2,
        (
            Member("rank_one", _fixed(), _reads_pixels, "reads the inputs of a dense first layer in closed form, from a few visible columns"),
            Member("silhouette", _fixed(), _shows_rows, "reads the sizes of that layer's rows, and the list of what is encrypted of them"),
            Member("april", _fixed(), _reads_patches, "reads the patches of a vision transformer in closed form, from its positions"),
            Member(
                "inverting_gradients",
                # The strongest weight differs by orders of magnitude between models, and a large one keeps a search from explaining what is visible.
                _either(_spent(1200, 4800, total_variation_weight=0.01), _spent(1200, 4800, total_variation_weight=1e-5)),
                _anywhere,
                "cosine distance with total variation: first-order steps where a network's kinks mislead second-order ones",
            ),
            Member("bayesian", _spent(60, 150), _anywhere, "second-order matching that ends at the likeliest image, also behind masks"),
            Member("gauss_newton", {"full": ({"num_steps": 60},)}, _small, "the same likeliest image by Jacobians, at a dozen times the price"),
        ),
    ),
    "text": Suite(
        "text",
        1,
        (
            Member(
                "dager",
                {"quick": ({"num_attempts": 1, "max_candidates": 32},), "standard": ({},), "full": ({},)},
                _transformer,
                "tests tokens against row spaces: exact where a whole attention gradient is visible or can be completed",
            ),
            Member("tag", _spent(500, 1000, **_SPARSE), _one_label, "matches gradients of every leaf, masked or not"),
            Member("lamp", _spent(0, 2000), _one_label, "cosine distance with a search over the order of tokens"),
        ),
    ),
}
"""Kind of data -> suite."""


def suite_for(name: str) -> Suite:
    """Returns the suite of a name, which is that of a modality: images or text.

    Raises:
      UsageError: if there is none of that name.
    """
    if name not in SUITES:
        raise UsageError(f"unknown suite {name!r}; {did_you_mean(name, SUITES)}")
    return SUITES[name]
