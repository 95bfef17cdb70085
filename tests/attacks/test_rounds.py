"""The same data sent in several rounds: what one round hides another may show, and all attacks see all of them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import run_cell, trees
from selgrad.attacks.dager import _layer
from selgrad.base import Round
from selgrad.config import RoundsConfig, parse
from selgrad.errors import UsageError
from selgrad.experiment import Certifier, Lane, Setting, assemble
from selgrad.gradients import observe
from selgrad.registry import make_spec

DIGIT = {"name": "digits", "count": 2}
SIGMOID = {"name": "mlp", "width": 16, "activation": "sigmoid"}
FOUR = {"count": 4, "server_learning_rate": 1.0}


@pytest.mark.once
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


@pytest.mark.once
def test_the_decoder_reads_all_rounds():
    """At 95 % hidden at random what is visible in eight rounds says more of held-out digits than what is visible in one."""
    public = {"name": "digits", "count": 400, "offset": 100}
    cell = {"dataset": DIGIT, "model": SIGMOID, "metric": "random", "ratio": 0.95, "attack": {"name": "learned", "num_steps": 200}, "public": public}
    explained = lambda found: int(re.search(r"(\d+)% of the variance of held-out ones", found.report)[1])
    assert explained(run_cell(**cell)) + 5 < explained(run_cell(**cell, rounds={"count": 8}))


def test_dager_tests_tokens_against_every_rounds_row_space(text_problem):
    """The same round twice says what it says once, and a round that shows nothing says nothing."""
    p = text_problem()
    seen = observe(p.model, p.update, p.params, p.grads, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), p.grads), valid=p.batch.valid)
    mine = Round(seen.params, seen.visible, seen.mask)
    width = trees.subtree(seen.params, seen.model.attention_kernels[0][0]).shape[0]
    tokens = np.broadcast_to(np.arange(5, 9, dtype=np.int32)[:, None], (4, seen.valid.shape[1]))
    real = np.ones(tokens.shape, bool)
    alone = _layer(seen, 1, "ignore", width // 2, 1e-8)
    twice = _layer(dataclasses.replace(seen, sent=(*seen.sent, mine)), 1, "ignore", width // 2, 1e-8)
    np.testing.assert_allclose(alone.distances(tokens, real, 8), twice.distances(tokens, real, 8), rtol=1e-6)
    assert len(twice.parts) == 2 and twice.leaves[-1].startswith("round 2: ")
    nothing = mine._replace(mask=jax.tree.map(jnp.ones_like, mine.mask))
    blind = _layer(dataclasses.replace(seen, sent=(*seen.sent, nothing)), 1, "ignore", width // 2, 1e-8)
    np.testing.assert_array_equal(alone.distances(tokens, real, 8), blind.distances(tokens, real, 8))
    assert len(blind.parts) == 1 and any("hidden whole" in leaf for leaf in blind.unused)


def test_certificates_stack_the_rounds_rows():
    specs = make_spec("dataset", "digits", {"count": 1}), make_spec("model", "mlp", {"width": 4, "activation": "sigmoid"}), make_spec("update", "gradient")
    metric, selector = make_spec("metric", "random"), make_spec("selector", "global_top")
    once, thrice = Setting(*specs), Setting(*specs, rounds=RoundsConfig(count=3, server_learning_rate=1.0))
    count = once.num_total - 30
    (alone,), (information,), _ = Certifier(once).certify(metric, selector, 0, (count,), 0)
    (together,), (sum_of_three,), _ = Certifier(thrice).certify(metric, selector, 0, (count,), 0)
    assert alone.rank <= 30 < together.rank <= 64 and together.num_visible == 90
    assert together.posterior_mse < alone.posterior_mse
    # What two more rounds add to the first one's information is never negative.
    more = np.linalg.eigvalsh(sum_of_three - information)
    assert more[0] > -1e-9 * more[-1] and np.linalg.matrix_rank(information, hermitian=True) <= 30


def test_weights_move_between_rounds_by_the_mean_update_and_masks_follow_them():
    setting = Setting(
        make_spec("dataset", "digits", {"count": 2}),
        make_spec("model", "mlp", {"width": 8}),
        make_spec("update", "gradient"),
        rounds=RoundsConfig(count=3, server_learning_rate=0.5),
    )
    for t in (0, 1):
        before, after = setting.client(0, t), setting.client(0, t + 1)
        for w, new, g in zip(*map(jax.tree.leaves, (before.params, after.params, before.grads)), strict=True):
            np.testing.assert_allclose(new, w - 0.5 * g.mean(axis=0), rtol=1e-6, atol=1e-7)
    lane = Lane(0, 1, make_spec("metric", "random"), make_spec("selector", "global_top"), 0.3)
    tables, lanes = assemble(setting, [0], [[lane]], 1)
    assert len(tables.weights) == len(tables.updates) == len(lanes.hidden) == 3
    assert all(leaf.shape[:2] == (1, 1) for leaf in jax.tree.leaves(tables.updates)) and lanes.hidden[1].shape[:2] == (1, 1)
    for t in (0, 1, 2):
        jax.tree.map(lambda held, sent: np.testing.assert_array_equal(held[0, 0], sent), tables.updates[t], setting.sent(0, t, 1).grads)
    assert (lanes.hidden[1] != lanes.hidden[2]).any(), "a random mask is drawn anew in each round"


@pytest.mark.once
def test_rounds_are_checked_and_recorded(tmp_path):
    base = {"dataset": DIGIT, "model": {"name": "mlp", "width": 8}, "metric": "magnitude", "ratio": 0.1, "attack": {"name": "idlg", "num_steps": 2}}
    with pytest.raises(UsageError, match="count=0"):
        parse({**base, "rounds": {"count": 0}})
    with pytest.raises(UsageError, match="no key 'times'"):
        parse({**base, "rounds": {"times": 2}})
    assert parse(base).identity == parse({**base, "rounds": {"count": 1}}).identity != parse({**base, "rounds": {"count": 2}}).identity
    from selgrad import run_sweep

    records = run_sweep({**base, "rounds": {"count": 2}, "encryption": "none", "gallery": 0}, tmp_path / "run", quiet=True)
    assert (records["num_rounds"] == 2).all()
