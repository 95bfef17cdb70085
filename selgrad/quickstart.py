"""The quickstart: a small sweep on real handwritten digits and photographs that needs no network and no file.

Two settings in one configuration; it runs in a few minutes on two cores and shows what a sweep leaves.
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
    "ratio": [0, 0.05, 0.2, 0.5],
    "attack": [{"name": "idlg", "num_steps": 20, "num_restarts": 2, "start": "grey", "hidden": ["zero", "ignore"]}],
    "encryption": {"profile": "exact", "num_clients": 10},
    "success": {"measure": "mse", "threshold": 0.01},
    "seeds": [0],
}
"""A `selgrad sweep` configuration, as YAML would hold it."""
