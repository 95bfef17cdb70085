"""Gradient inversion attacks, one file each, assembled from shared parts.

An attack sees an `Observation` and nothing else: this room imports neither data nor encryption, and a test says so.
"""

from selgrad.attacks.dlg import dlg
from selgrad.attacks.idlg import idlg
from selgrad.attacks.inverting_gradients import inverting_gradients

ATTACKS = {"dlg": dlg, "idlg": idlg, "inverting_gradients": inverting_gradients}
