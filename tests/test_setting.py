"""Clients and what they choose, in pages where they do not fit in memory together; and what a block of them takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import devices, topk, trees
from selgrad.config import RoundsConfig, parse
from selgrad.errors import GradientError, UsageError
from selgrad.experiment import Lane, Setting, Threat, make_engine, num_updates, shapes
from selgrad.registry import Spec, make_spec
from selgrad.sweep.plan import lanes_of_seed, most_updates

DATA, MODEL, UPDATE = make_spec("dataset", "digits", {"count": 5}), make_spec("model", "mlp", {"width": 8}), make_spec("update", "gradient")
ENTRIES = 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10


def with_room_for(samples, monkeypatch, **further):
    """A setting where memory holds pages of so many samples."""
    monkeypatch.setattr(devices, "memory_budget", lambda: 4 * 4 * 4 * samples * ENTRIES * further.get("rounds", RoundsConfig()).count)
    return Setting(DATA, MODEL, UPDATE, **further)


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_pages_hold_what_one_page_would(samples, monkeypatch):
    rounds = RoundsConfig(count=2, server_learning_rate=0.5)
    whole, paged = (with_room_for(room, monkeypatch, rounds=rounds) for room in (100, samples))
    assert whole.num_total == ENTRIES and whole.num_pages == 1 and paged.num_pages == -(-5 // samples)
    assert [sample for page in range(paged.num_pages) for sample in paged.page(page)] == [0, 1, 2, 3, 4]
    metrics = [make_spec("metric", name) for name in ("random", "magnitude", "sensitivity")]
    selectors = [make_spec("selector", name) for name in ("global_top", "per_leaf_top")]
    for t in (0, 1):
        # The mean over samples is summed page by page, which the weights of the second round read.
        near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        jax.tree.map(near, whole.weights(0, t), paged.weights(0, t))
        for sample in range(5):
            jax.tree.map(near, whole.sent(0, t, sample).grads, paged.sent(0, t, sample).grads)
    for metric in metrics:
        for selector in selectors:
            ranks = whole.ranks(metric, selector, 0)[0]
            jax.tree.map(np.testing.assert_array_equal, ranks, paged.ranks(metric, selector, 0)[0])
            for sample in range(5):
                lane = Lane(0, sample, metric, selector, 0.3)
                expected = jax.tree.map(lambda leaf, i=sample: leaf[i] < whole.num_selected(0.3), ranks)
                jax.tree.map(np.testing.assert_array_equal, whole.mask(lane), expected)
                jax.tree.map(np.testing.assert_array_equal, paged.mask(lane), expected)


def test_one_order_for_a_cohort_is_refused_where_its_scores_do_not_fit(monkeypatch):
    paged = with_room_for(2, monkeypatch)
    with pytest.raises(UsageError, match="common needs the scores of all 5 samples"):
        paged.mask(Lane(0, 0, make_spec("metric", "magnitude"), make_spec("selector", "common"), 0.1))


def test_a_model_of_which_one_gradient_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "memory_budget", lambda: 4 * 4 * ENTRIES - 1)
    with pytest.raises(UsageError, match=r"one sample of 682 entries need .* take a smaller mlp"):
        Setting(DATA, MODEL, UPDATE)


def test_masks_of_all_counts_are_made_at_once_and_kept_packed(monkeypatch):
    setting = Setting(DATA, MODEL, UPDATE)
    setting.hold(1, 1, [10, 200, 682])
    made = []
    monkeypatch.setattr(topk, "top_on_host", lambda scores, counts, first, real=topk.top_on_host: made.append(counts) or real(scores, counts, first))
    choose = lambda ratio: setting.chosen(Lane(0, 1, make_spec("metric", "magnitude"), make_spec("selector", "global_top"), ratio)).bits
    for ratio, count in ((10 / 682, 10), (200 / 682, 200), (1.0, 682)):
        assert choose(ratio).dtype == np.uint8 and choose(ratio).shape == (-(-682 // 8),)
        assert np.bitwise_count(choose(ratio)).sum() == count
    assert made == [(10, 200, 682)] * 5, "once a sample"


def test_memory_of_a_block_is_its_tables_and_so_much_a_lane():
    setting = Setting(DATA, make_spec("model", "mlp", {"width": 64}), UPDATE)
    metric, selector = make_spec("metric", "magnitude"), make_spec("selector", "global_top")
    attack = make_spec("attack", "inverting_gradients", {"num_steps": 4, "num_restarts": 1})

    def compiled(lanes, rows):
        engine = make_engine(setting, attack, threat=Threat(known_labels=True), num_seeds=1, num_lanes=lanes, chosen_by=(metric, selector))
        engine.compile(*shapes(setting, 1, lanes, rows))
        return engine

    # Labels are given: their trials are another phase. From 16 lanes on: below, newer compilers overlay a phase's buffers in another way (96,284 bytes a lane from
    # 8 to 16, 105,525 from 16 to 32, 106,038 to 64).
    small, middle, large = (compiled(lanes, 2) for lanes in (16, 32, 64))
    each = (large.memory_bytes - middle.memory_bytes) / 32
    assert (middle.memory_bytes - small.memory_bytes) / 16 == pytest.approx(each, rel=0.05)
    # What a step works on: what is seen of an update and where, the dummy's gradient, and little else; the tables come once.
    entries = 4 * setting.num_total
    assert 2 * entries < each < 6 * entries, each / entries
    tables, _ = shapes(setting, 1, 16, 2)
    assert small.shared_bytes == sum(leaf.dtype.itemsize * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tables)) == 3 * entries
    more = compiled(16, 5)
    assert more.shared_bytes - small.shared_bytes == 3 * entries


def test_as_many_updates_as_neighbouring_lanes_can_be_of():
    config = parse({"dataset": {"name": "digits", "count": 7}, "model": "mlp", "metric": ["random", "magnitude"], "ratio": [0, 0.1, 0.2], "attack": "idlg"})
    lanes = lanes_of_seed(config, 7, 0)
    for width in range(1, len(lanes) + 1):
        found = max(num_updates([lanes[at : at + width]]) for at in range(len(lanes) - width + 1))
        assert found == min(most_updates(config, 7, width), 7)


def test_trees_are_packed_in_their_order():
    setting = Setting(DATA, MODEL, UPDATE)
    lane = Lane(0, 2, make_spec("metric", "magnitude"), make_spec("selector", "global_top"), 0.25)
    mask, ranks = setting.mask(lane), trees.rank(jax.tree.map(np.abs, setting.sent(0, 0, 2).grads))
    jax.tree.map(lambda m, r: np.testing.assert_array_equal(m, np.asarray(r) < setting.num_selected(0.25)), mask, ranks)


def images(height=8, width=8, classes=3):
    return np.random.default_rng(0).random((3, height, width, 1)).astype(np.float32), np.arange(3) % classes


class TestInputThatTellsNothingIsRefused:
    def test_one_class(self):
        with pytest.raises(UsageError, match="one class"):
            Setting(Spec.of("dataset", images(classes=1)), MODEL, UPDATE)

    @pytest.mark.parametrize("shape", [(2, 8), (8, 1)])
    def test_images_of_too_few_pixels(self, shape):
        with pytest.raises(UsageError, match=f"{shape[0]} x {shape[1]} pixels"):
            Setting(Spec.of("dataset", images(*shape)), MODEL, UPDATE)

    def test_an_update_of_zeros(self):
        constant = lambda key: {"w": jnp.ones(3)}, lambda params, x: jnp.zeros((len(x), 3)) + 0 * params["w"]
        setting = Setting(Spec.of("dataset", images()), Spec.of("model", constant), UPDATE)
        with pytest.raises(GradientError, match="sample 0 .* is 0 in every entry"):
            setting.client(0)

    def test_a_sentence_without_a_word(self, tmp_path):
        file = tmp_path / "texts.txt"
        file.write_text("two words\n...\nмои слова\n")
        given = make_spec("dataset", "text_file", {"path": str(file)}), make_spec("model", "bert", {"size": "tiny"}), UPDATE
        with pytest.raises(UsageError, match="sentence 1 of the data set, .* holds no word"):
            Setting(*given)
        assert Setting(*given, samples=[0, 2]).num_samples == 2
