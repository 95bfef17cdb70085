"""What a client does to its update in the place of encryption: the baselines, one file each.

`PROTECTIONS` maps a name to a factory; what it returns is public, and an attacker simulates as much of it as can be simulated.
"""

from selgrad.protections.dp_gaussian import dp_gaussian
from selgrad.protections.nothing import none
from selgrad.protections.protected import Protected
from selgrad.protections.pruning import pruning
from selgrad.protections.quantised import quantised

__all__ = ["PROTECTIONS", "Protected"]

PROTECTIONS = {"none": none, "pruning": pruning, "dp_gaussian": dp_gaussian, "quantised": quantised}
