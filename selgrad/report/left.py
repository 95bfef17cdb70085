"""What each mask leaves to an attacker, shown next to its ratio: the same ratio of two metrics or models leaves different things.

All of it comes from record files; nothing here imports JAX.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from selgrad.report.verdicts import setting_names

FEW = 8
"""The largest number of layers that are all named; of more, only the least and the most hidden are."""


def what_is_left(records: pd.DataFrame) -> pd.DataFrame:
    """Summarises what masks leave, one row for each setting, metric, selector and ratio; no rows for records without these columns.

    Returns:
      Columns `setting`, `metric`, `selector`, `ratio`, `visible_per_unknown` (median over the masks), `posterior_mse` (mean of the certificates; NaN without
      them), and `hidden`: layer -> mean share of its entries that are hidden.
    """
    columns = ["setting", "metric", "selector", "ratio", "visible_per_unknown", "posterior_mse", "hidden"]
    if not {"visible_per_unknown", "hidden_by_layer"} <= set(records.columns):
        return pd.DataFrame(columns=columns)
    names = ["setting", "metric_label", "selector_label", "ratio"]
    # Attacks share their masks.
    masks = records.assign(setting=setting_names(records)).drop_duplicates([*names, "sample", "seed"])
    rows = []
    for (setting, metric, selector, ratio), cells in masks.groupby(names, sort=True):
        shares = pd.DataFrame([json.loads(text) for text in cells["hidden_by_layer"]]).mean()
        posterior = cells["certificate_posterior_mse"].mean() if "certificate_posterior_mse" in cells else math.nan
        rows.append([setting, metric, selector, ratio, float(cells["visible_per_unknown"].median()), float(posterior), shares.to_dict()])
    return pd.DataFrame(rows, columns=columns)


def layers_in_words(hidden: dict[str, float]) -> str:
    """Lists each layer and how much of it is hidden, or only the least and the most hidden where there are many layers."""
    describe = lambda name: f"{name} {100 * hidden[name]:.3g} %"
    if len(hidden) <= FEW:
        return ", ".join(map(describe, hidden))
    least, most = min(hidden, key=hidden.__getitem__), max(hidden, key=hidden.__getitem__)
    return f"from {describe(least)} to {describe(most)} ({len(hidden)} layers)"


def left_rows(records: pd.DataFrame) -> list[list[Any]]:
    """Returns header and rows as a page shows them; an empty list where records lack these columns, or nothing is encrypted."""
    table = what_is_left(records)
    table = table[table["ratio"] > 0]
    if table.empty:
        return []
    keys = [key for key in ("setting", "metric", "selector") if key == "metric" or table[key].nunique() > 1]
    certified = table["posterior_mse"].notna().any()
    header = [*keys, "encrypted", "visible, not 0, per unknown", *(["posterior MSE"] if certified else []), "hidden of each layer"]
    rows = []
    for row in table.itertuples():
        posterior = [f"{row.posterior_mse:.2g}"] if certified else []
        chosen = [str(getattr(row, key)) for key in keys]
        rows.append([*chosen, f"{100 * row.ratio:g} %", f"{row.visible_per_unknown:.3g}", *posterior, layers_in_words(row.hidden)])
    return [header, *rows]
