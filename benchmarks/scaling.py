"""How time and memory grow with parameters, with lanes and with cells, and the exponents of straight lines through them on log-log paper.

Command: uv run python benchmarks/scaling.py   [--draw]   (a quarter of an hour on 2 cores; reads results/many_cells.json; with --draw it only draws what scaling.json holds)
Setting: `parameters`: a step of Inverting Gradients on an MLP of one image, widths that give 10^4 to 10^8 parameters, one lane. `lanes`: a step of Inverting
  Gradients on LeNet with 10 classes, 1 to 4096 lanes over one XLA device a core, all lanes together. Both as `engine.py` measures them, memory being arguments and
  temporaries of the compiled step. `cells`: resuming, reading, reporting and summarising a sweep of 10^2 to 10^6 cells, the peak of the four processes, from
  `many_cells.py`. Exponents are of the last two decades and more, where what does not grow no longer counts: see `fitted_over`.
Expected: exponents of one at most.
Leaves: benchmarks/results/scaling.json and docs/figures/scaling.png.
"""

import json
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import engine
import jax
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
WIDTHS = {10**4: 3, 10**5: 32, 10**6: 300, 10**7: 2000, 10**8: 8600}
LANES = (1, 4, 16, 64, 256, 1024, 4096)
FITTED_FROM = {"parameters": 10**6, "lanes": 16, "cells": 10**4}


def step(name, lanes, steps):
    run, told, _ = engine.program(name, lanes)
    seconds = statistics.median(engine.seconds_per_step(run, steps, 5))
    megabytes = told["temporary_megabytes_per_lane"] + told["argument_megabytes_per_lane"]
    return {"seconds": seconds, "megabytes": megabytes * lanes, "entries": told["entries"]}


def parameters():
    for about, width in WIDTHS.items():
        name = f"mlp of width {width}"
        engine.CASES[name] = ("mlp", {"width": width}, "inverting_gradients", engine.LONG, (1,), 1)
        row = step(name, 1, max(2, min(400, 10**8 // about)))
        yield {"x": row["entries"], **row}


def lanes():
    for count in LANES:
        yield {"x": count, **step("lenet inverting_gradients", count, max(2, 800 // count))}


def cells():
    for count, found in json.loads((HERE / "results" / "many_cells.json").read_text())["cells"].items():
        yield {"x": int(count), "seconds": found["together"]["seconds"], "megabytes": found["together"]["peak_bytes"] / 1e6}


def fit(rows, least):
    """Slopes of the logarithms of seconds and megabytes."""
    used = [row for row in rows if row["x"] >= least]
    x = np.log([row["x"] for row in used])
    return {
        "fitted_over": [used[0]["x"], used[-1]["x"]],
        **{what: float(np.polyfit(x, np.log([row[what] for row in used]), 1)[0]) for what in ("seconds", "megabytes")},
    }


def draw(result):
    figure = Figure(figsize=(11, 6), layout="constrained")
    titles = {"parameters": "a step of the attack, one lane", "lanes": "a step of the attack, LeNet", "cells": "resuming, reading, reporting a sweep"}
    for column, name in zip(figure.subplots(2, 3, sharex="col").T, FITTED_FROM, strict=True):
        rows, exponents = result[name]["rows"], result[name]["exponents"]
        for axis, what, colour, label in zip(column, ("seconds", "megabytes"), ("#0072B2", "#D55E00"), ("time, s", "memory, MB"), strict=True):
            axis.loglog([row["x"] for row in rows], [row[what] for row in rows], "o-", color=colour)
            first, last = exponents["fitted_over"]
            where = f"from {first:,.0f} to {last:,.0f} {name}"
            axis.text(0.04, 0.95, f"exponent {exponents[what]:.2f}\n{where}", transform=axis.transAxes, va="top", fontsize=8)
            axis.margins(y=0.25)
            axis.set_ylabel(label)
            axis.grid(alpha=0.25)
        column[0].set_title(titles[name], fontsize=10)
        column[1].set_xlabel(name)
    figure.savefig(HERE.parent / "docs" / "figures" / "scaling.png", dpi=150)


def main():
    if sys.argv[1:] == ["--draw"]:
        draw(json.loads((HERE / "results" / "scaling.json").read_text()))
        return
    result = {
        "hardware": {
            "cores": len(os.sched_getaffinity(0)),
            "jax": jax.__version__,
            "device": jax.local_devices()[0].device_kind,
            "load_at_start": os.getloadavg()[0],
        }
    }
    for rows_of in (parameters, lanes, cells):
        rows = []
        for row in rows_of():
            rows.append(row)
            print(rows_of.__name__, row, flush=True)
        result[rows_of.__name__] = {"rows": rows, "exponents": fit(rows, FITTED_FROM[rows_of.__name__])}
        print(rows_of.__name__, result[rows_of.__name__]["exponents"], flush=True)
    (HERE / "results" / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result)


if __name__ == "__main__":
    main()
