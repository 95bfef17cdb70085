"""The same data sent in several rounds: what one round hides another may show, and all attacks see all of them."""

import jax
import numpy as np
import pytest

from selgrad import run_cell, trees
from selgrad.config import make_spec, parse
from selgrad.errors import UsageError
from selgrad.experiment import Lane, Setting, assemble

DIGIT = {"name": "digits", "count": 2}
SIGMOID = {"name": "mlp", "width": 16, "activation": "sigmoid"}
FOUR = {"count": 4, "server_learning_rate": 1.0}


def test_rounds_add_what_another_round_hides():
    """At 97 % hidden at random one round does not determine the picture; four rounds do."""
    cell = {"dataset": DIGIT, "model": SIGMOID, "metric": "random", "ratio": 0.97, "attack": {"name": "idlg", "num_steps": 60, "start": "grey"}}
    alone, together = run_cell(**cell), run_cell(**cell, rounds=FOUR)
    assert alone.mse > 0.01 > 1e-3 > together.mse


def test_rank_one_puts_the_rounds_kernels_side_by_side():
    cell = {"dataset": DIGIT, "model": SIGMOID, "metric": "random", "ratio": 0.85, "attack": "rank_one"}
    alone, together = run_cell(**cell), run_cell(**cell, rounds=FOUR)
    assert together.mse < 1e-6 < alone.mse


@pytest.mark.parametrize("hidden", ["complete", "bounded"])
def test_the_upper_rungs_take_several_rounds(hidden):
    found = run_cell(
        dataset=DIGIT, model=SIGMOID, metric="magnitude", ratio=0.1, rounds={"count": 2}, attack={"name": "idlg", "num_steps": 40, "start": "grey", "hidden": hidden}
    )  # fmt: skip
    assert found.mse < 1e-3


def test_weights_move_between_rounds_by_the_mean_update_and_masks_follow_them():
    setting = Setting(
        make_spec("dataset", "digits", {"count": 2}),
        make_spec("model", "mlp", {"width": 8}),
        make_spec("update", "gradient"),
        rounds={"count": 3, "server_learning_rate": 0.5},
    )
    for t in (0, 1):
        before, after = setting.client(0, t), setting.client(0, t + 1)
        for w, new, g in zip(*map(jax.tree.leaves, (before.params, after.params, before.grads)), strict=True):
            np.testing.assert_allclose(new, w - 0.5 * g.mean(axis=0), rtol=1e-6, atol=1e-7)
    lane = Lane(0, 1, make_spec("metric", "random"), make_spec("selector", "global_top"), 0.3)
    weights, lanes = assemble(setting, [0], [[lane]])
    assert jax.tree.leaves(weights.later)[0].shape[:2] == (1, 2) and jax.tree.leaves(lanes.later[1])[0].shape[:3] == (1, 1, 2)
    masks = [trees.concatenate(jax.tree.map(lambda leaf, t=t: leaf[0, 0, t], lanes.later[1])) < 10 for t in (0, 1)]
    assert (masks[0] != masks[1]).any(), "a random mask is drawn anew in each round"


def test_rounds_are_checked_and_recorded(tmp_path):
    base = {"dataset": DIGIT, "model": {"name": "mlp", "width": 8}, "metric": "magnitude", "ratio": 0.1, "attack": {"name": "idlg", "num_steps": 2}}
    with pytest.raises(UsageError, match="count=0"):
        parse({**base, "rounds": {"count": 0}})
    with pytest.raises(UsageError, match="one round"):
        parse({**base, "rounds": {"count": 2}, "certificates": True})
    with pytest.raises(UsageError, match="no key 'times'"):
        parse({**base, "rounds": {"times": 2}})
    assert parse(base).identity == parse({**base, "rounds": {"count": 1}}).identity != parse({**base, "rounds": {"count": 2}}).identity
    from selgrad import run_sweep

    records = run_sweep({**base, "rounds": {"count": 2}, "encryption": "none", "gallery": 0}, tmp_path / "run", quiet=True)
    assert (records["num_rounds"] == 2).all()
