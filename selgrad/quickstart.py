"""The quickstarts: small sweeps that need no network and no file, on real handwritten digits and photographs, and on sentences.

Each is one configuration, runs in a few minutes on two cores, and shows what a sweep produces.
"""

from __future__ import annotations

from typing import Any

QUICKSTART: dict[str, Any] = {
    "name": "quickstart",
    "dataset": [{"name": "digits", "count": 3}, {"name": "photos", "count": 1, "offset": 1}],
    "model": {"name": "lenet", "activation": "sigmoid"},
    "update": {"name": "gradient", "batch_size": 1},
    "metric": ["random", "magnitude", {"name": "sensitivity", "target": "inputs"}],
    "selector": "global_top",
    "ratio": [0, 0.2, 0.5, 0.8, 0.95],
    "attack": [{"name": "idlg", "num_steps": 20, "num_restarts": 2, "start": "grey", "hidden": ["zero", "ignore"]}],
    "encryption": {"profile": "exact", "num_clients": 10},
    "seeds": [0],
}
"""A `selgrad sweep` configuration, in the form that YAML would hold."""

QUICKSTART_TEXT: dict[str, Any] = {
    "name": "quickstart-text",
    "dataset": {"name": "sentences", "count": 3},
    "model": {"name": "bert", "size": "tiny"},
    "update": {"name": "gradient", "batch_size": 1},
    "metric": ["random", "magnitude"],
    "selector": "global_top",
    "ratio": [0, 0.05, 0.2, 0.5, 0.8],
    "attack": [
        {"name": "dager", "hidden": ["zero", "ignore"]},
        {"name": "dlg_text", "num_steps": 400, "start": "vocabulary", "learning_rate": 0.01, "hidden": ["zero", "ignore"]},
    ],
    "encryption": {"profile": "exact", "num_clients": 10},
    "seeds": [0],
}
"""The same for text: what a BERT's gradient reveals about a sentence."""
