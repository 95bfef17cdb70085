"""Gradient inversion attacks, one file each, assembled from shared parts.

An attack sees an `Observation` and nothing else: this room imports neither data nor encryption, and a test says so.
"""

from selgrad.attacks.dager import dager
from selgrad.attacks.dlg import dlg
from selgrad.attacks.dlg_text import dlg_text
from selgrad.attacks.idlg import idlg
from selgrad.attacks.inverting_gradients import inverting_gradients
from selgrad.attacks.lamp import lamp
from selgrad.attacks.learned import learned
from selgrad.attacks.rank_one import rank_one
from selgrad.attacks.tag import tag

ATTACKS = {
    "dlg": dlg,
    "idlg": idlg,
    "inverting_gradients": inverting_gradients,
    "dlg_text": dlg_text,
    "tag": tag,
    "lamp": lamp,
    "dager": dager,
    "rank_one": rank_one,
    "learned": learned,
}
