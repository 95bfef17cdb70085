"""What each mask leaves to an attacker, beside its ratio: a ratio of one metric or model is not that of another.

From record files alone; nothing here imports JAX.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from selgrad.report.verdicts import setting_names

FEW = 8
"""Layers that are all named; of more the least and the most hidden are."""


def what_is_left(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting, metric, selector and ratio; none for records that do not say.

    Returns:
      Columns `setting`, `metric`, `selector`, `ratio`, `visible_per_unknown` (median over the masks), `posterior_mse` (mean of the certificates; NaN without
      them), and `hidden`: layer -> mean share of its entries that nobody sees.
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
    """Each layer and how much of it is hidden, or where there are many of them the least and the most hidden."""
    said = lambda name: f"{name} {100 * hidden[name]:.3g} %"
    if len(hidden) <= FEW:
        return ", ".join(map(said, hidden))
    least, most = min(hidden, key=hidden.__getitem__), max(hidden, key=hidden.__getitem__)
    return f"from {said(least)} to {said(most)} ({len(hidden)} layers)"


def left_rows(records: pd.DataFrame) -> list[list[Any]]:
    """Header and rows as a page shows them; nothing where records do not say so, or nothing is encrypted."""
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
