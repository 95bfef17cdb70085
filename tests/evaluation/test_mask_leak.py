"""What masks tell, on masks that were made to tell a known amount."""

import math

import numpy as np
import pytest

from selgrad.audit import _places, audit_masks, audit_paths
from selgrad.errors import UsageError
from selgrad.evaluation.mask_leak import extra_entries, leak, principal_components, support_auc

RNG = np.random.default_rng(0)


def test_masks_that_spell_out_the_label_give_all_its_bits():
    labels = np.arange(200) % 4
    masks = np.zeros((200, 64), bool)
    masks[np.arange(200), labels] = True
    masks[:, 10:] = RNG.random((200, 54)) < 0.5
    found = leak(masks, labels, RNG.random((200, 5)), None)
    assert found.label_entropy == pytest.approx(2) and found.label_chance == 0.25
    assert found.label_accuracy > 0.98 and found.label_bits > 1.6
    assert found.input_explained < 0.05 and math.isnan(found.support_auc)


@pytest.mark.parametrize("masks", [np.ones((100, 30), bool) * (np.arange(30) < 10), RNG.random((100, 300)) < 0.1], ids=["constant", "random"])
def test_masks_that_do_not_depend_on_the_data_give_nothing(masks):
    labels = RNG.integers(0, 2, 100)
    found = leak(masks, labels, RNG.random((100, 5)), None)
    assert found.label_bits < 0.05 and found.input_explained < 0.05
    assert found.label_accuracy < found.label_chance + 0.15


def test_a_noisy_bit_gives_no_more_than_its_channel():
    """Label through a binary symmetric channel of error 0.1: 1 - H(0.1) = 0.531 bits; a lower bound stays below it, up to sampling."""
    labels = np.arange(2000) % 2
    bit = labels ^ (RNG.random(2000) < 0.1)
    found = leak(np.stack([bit == 1, bit == 0], axis=1), labels, np.zeros((2000, 1)), None)
    assert 0.45 < found.label_bits < 0.56 and found.label_accuracy == pytest.approx(0.9, abs=0.03)


def test_inputs_that_are_linear_in_the_mask_are_explained():
    masks = RNG.random((300, 40)) < 0.5
    inputs = masks[:, :8] @ RNG.normal(size=(8, 12))
    assert leak(masks, np.zeros(300), inputs, None).input_explained > 0.95


def test_the_order_of_a_list_tells_what_the_set_does_not():
    """Everybody lists the same ten entries, and the label is whether they stand forwards or backwards."""
    labels = np.arange(200) % 2
    ranks = np.tile(np.arange(30), (200, 1))
    ranks[labels == 1, :10] = np.arange(10)[::-1]
    inputs = RNG.random((200, 3))
    assert leak(_places(ranks, 10, ordered=False), labels, inputs, None).label_bits == 0
    assert leak(_places(ranks, 10, ordered=True), labels, inputs, None).label_bits > 0.9
    assert not _places(ranks, 0, ordered=True).any()
    np.testing.assert_allclose(_places(ranks[:1], 10, ordered=True)[0], [*np.arange(10, 0, -1) / 10, *[0] * 20], rtol=1e-6)


def test_components_are_those_of_the_centred_masks():
    masks = RNG.random((20, 100)) < 0.3
    found = principal_components(masks, 5)
    u = np.linalg.svd(masks - masks.mean(axis=0), full_matrices=False)[0][:, :5] * np.sqrt(20)
    np.testing.assert_allclose(np.abs((found * u).sum(axis=0)) / 20, 1, atol=1e-5)


def test_rows_with_more_hidden_entries_point_at_what_occurs():
    occurs = np.asarray([[True, False], [False, True], [True, True], [False, False]])
    assert support_auc(np.where(occurs, 0.9, 0.1), occurs) == 1
    assert support_auc(np.tile([[0.9, 0.1]], (4, 1)), occurs) == 0.5, "one mask for all says nothing of any"
    assert math.isnan(support_auc(np.ones((1, 2)), np.ones((1, 2), bool)))


def test_the_price_is_what_covers_a_clients_own_choice():
    own = np.arange(100)
    assert extra_entries(own, own, 10) == 0
    assert extra_entries(own, own[::-1], 10) == 99 - 10, "nine of the ten come after 90 others"
    assert extra_entries(own, np.roll(own, -5), 10, coverage=1.0) == 5


class TestAudit:
    def test_magnitude_on_sparse_relu_gradients_is_the_picture_itself(self):
        """FIELD: of a relu layer on sparse pixels, the entries that are not 0 are the support of the input."""
        table = audit_masks(
            dataset={"name": "digits", "count": 60}, model={"name": "mlp", "width": 32}, metrics=["magnitude", "random"], ratios=[0.1],
            selectors=["global_top", {"name": "common", "by": "mean"}],
        ).set_index(["metric", "selector"])  # fmt: skip
        leaking, common, blind = table.loc[("magnitude", "global_top")], table.loc[("magnitude", "common")], table.loc[("random", "global_top")]
        assert leaking.support_auc > 0.8
        assert common.support_auc == 0.5 and common.input_explained == 0 and common.extra_entries > 0
        assert abs(blind.support_auc - 0.5) < 0.05 and blind.input_explained < 0.05 and blind.extra_entries == 0

    def test_tokens_are_named_by_rows_of_their_embedding_gradient(self):
        table = audit_masks(dataset={"name": "sentences", "count": 30}, model={"name": "bert", "embedding": "sent"}, metrics=["magnitude"], ratios=[0.2])
        assert table.support_auc[0] > 0.99

    def test_a_priority_list_tells_more_of_the_inputs_than_its_set(self):
        given = {"dataset": {"name": "digits", "count": 150}, "model": {"name": "mlp", "width": 16}, "metrics": ["magnitude"], "ratios": [0.5]}
        as_set, as_list = (audit_masks(**given, ordered=ordered) for ordered in (False, True))
        assert as_list.input_explained[0] > as_set.input_explained[0] and as_list.label_bits[0] >= as_set.label_bits[0] - 0.05

    def test_it_needs_samples(self):
        with pytest.raises(UsageError, match="raise count"):
            audit_masks(dataset={"name": "digits", "count": 5}, model="mlp", metrics=["magnitude"], ratios=[0.1])

    def test_everything_but_the_last_layer_and_everything_but_the_first(self):
        common = {"dataset": {"name": "digits", "count": 1}, "model": {"name": "mlp", "width": 16, "activation": "sigmoid"}, "samples": [0]}
        rank_one = [{"name": "rank_one"}]
        first_open = audit_paths(["fc_1/**", "fc_2/**"], **common, attacks=rank_one)
        assert not first_open.safe and first_open.certificate.identified == 1 and "full rank 64" in first_open.certificate.verdict
        assert first_open.num_selected == 16 * 16 + 16 + 16 * 10 + 10
        first_closed = audit_paths(["fc_0/**"], **common, attacks=rank_one)
        assert first_closed.safe and first_closed.certificate.posterior_mse > first_open.certificate.posterior_mse
        assert first_closed.encrypted == ("fc_0/bias", "fc_0/kernel")
        with pytest.raises(UsageError, match="names no leaf"):
            audit_paths(["conv9/**"], **common)


def test_a_class_of_one_sample_does_not_hide_a_leak():
    """It cannot be both learnt and tested, so nothing was measured and zero bits were reported."""
    labels = np.arange(200) % 2
    masks = np.stack([labels == 1, labels == 0], axis=1)
    whole = leak(masks, labels, np.zeros((200, 1)), None)
    labels[7] = 2
    found = leak(masks, labels, np.zeros((200, 1)), None)
    assert found.label_accuracy == whole.label_accuracy == 1 and found.label_bits > 0.9 * whole.label_bits > 0.8
    alone = leak(masks[:3], np.arange(3), np.zeros((3, 1)), None)
    assert math.isnan(alone.label_accuracy) and math.isnan(alone.label_bits)
