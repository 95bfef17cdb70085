"""What masks leave, counted independently by NumPy on the tree of a real client, and as a page says it."""

import json

import jax
import numpy as np
import pytest

from selgrad import run_sweep, trees
from selgrad.experiment import Exposed, Lane, Setting
from selgrad.registry import Spec
from selgrad.report.left import layers_in_words, left_rows, what_is_left

SWEEP = {
    "name": "left", "dataset": {"name": "digits", "count": 2}, "model": {"name": "mlp", "width": 8}, "metric": ["magnitude", "random"],
    "ratio": [0, 0.3, 1], "attack": ["rank_one", "silhouette"], "encryption": "none", "gallery": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return run_sweep(SWEEP, tmp_path_factory.mktemp("left"), quiet=True)


def test_counts_are_those_of_the_trees():
    """Of a relu network, where a part of the gradient is 0, and with entries that pruning leaves out."""
    protection = {"name": "pruning", "ratio": 0.5, "order": "smallest"}
    for given in ({}, {"protection": Spec.of("protection", protection)}):
        setting = Setting(
            Spec.of("dataset", {"name": "digits", "count": 3}), Spec.of("model", {"name": "mlp", "width": 8}), Spec.of("update", "gradient"), **given
        )
        lane = Lane(1, 2, Spec.of("metric", "magnitude"), Spec.of("selector", "global_top"), 0.2)
        found, sent = Exposed(setting).left(lane), setting.sent(1, 0, 2)
        mask = jax.tree.map(np.asarray, setting.mask(lane))
        hidden = mask if sent.withheld is None else jax.tree.map(np.logical_or, mask, sent.withheld)
        assert found.num_nonzero == sum(int(((g != 0) & ~h).sum()) for g, h in zip(jax.tree.leaves(sent.grads), jax.tree.leaves(hidden), strict=True))
        assert 0 < found.num_nonzero < setting.num_total - sum(int(leaf.sum()) for leaf in jax.tree.leaves(hidden)) and found.num_unknown == 64
        assert list(found.hidden) == list(dict.fromkeys(path.rpartition("/")[0] for path in trees.paths(hidden)))
        for name, share in found.hidden.items():
            layer = np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(trees.subtree(hidden, name))])
            assert share == pytest.approx(layer.mean(), abs=1e-6)


def test_of_a_sentence_only_its_words_are_unknown():
    setting = Setting(Spec.of("dataset", {"name": "sentences", "count": 1}), Spec.of("model", {"name": "bert", "size": "tiny"}), Spec.of("update", "gradient"))
    found = Exposed(setting).left(Lane(0, 0, Spec.of("metric", "random"), Spec.of("selector", "global_top"), 0.5))
    words = len(setting.dataset.decode(setting.dataset.tokens[0]).split())
    assert found.num_unknown == 128 * words


def test_records_hold_it_and_a_page_says_it(records):
    whole = records[records["ratio"] == 1]
    assert (whole["visible_per_unknown"] == 0).all() and all(set(json.loads(text).values()) == {1.0} for text in whole["hidden_by_layer"])
    table = what_is_left(records)
    assert len(table) == 6 and table["posterior_mse"].isna().all()
    plain = table[table["ratio"] == 0]["visible_per_unknown"]
    assert plain.nunique() == 1 and plain.iloc[0] > table[table["ratio"] == 0.3]["visible_per_unknown"].max() > 0
    header, *rows = left_rows(records)
    assert header[:3] == ["metric", "encrypted", "visible, not 0, per unknown"] and len(rows) == 4
    assert left_rows(records.drop(columns="hidden_by_layer")) == [] == left_rows(records[records["ratio"] == 0])


def test_of_many_layers_the_ends_are_named():
    assert layers_in_words({"a": 0.25, "b": 1.0}) == "a 25 %, b 100 %"
    many = {f"layer{at}": at / 10 for at in range(10)}
    assert layers_in_words(many) == "from layer0 0 % to layer9 90 % (10 layers)"
