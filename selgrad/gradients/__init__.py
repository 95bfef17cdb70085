"""The client's update, and what of it is exposed.

`UPDATES` maps a name to a factory; an update is a pure function of model, parameters and batch that the attacker simulates too.
"""

from selgrad.gradients.exposure import observe
from selgrad.gradients.fedavg import fedavg
from selgrad.gradients.gradient import gradient

__all__ = ["UPDATES", "observe"]

UPDATES = {"gradient": gradient, "fedavg": fedavg}
