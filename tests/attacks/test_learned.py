"""The decoder trained for a mask, held to what it could know: public digits, the mask, and the visible entries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selgrad import checkpoints, run_cell, trees
from selgrad.attacks import idlg
from selgrad.attacks.learned import Training, estimate, learned
from selgrad.data import DATASETS
from selgrad.errors import UsageError
from selgrad.gradients import UPDATES, observe
from selgrad.models import MODELS

# One worker makes the fixtures of this file.
pytestmark = [pytest.mark.xdist_group("learned"), pytest.mark.once]

PUBLIC = {"name": "digits", "count": 400, "offset": 100}
QUICK = Training(num_features=512, width=128, num_steps=200)


@pytest.fixture(scope="module")
def client():
    """One digit's observation, given the share of entries hidden at random, with 400 other digits public."""
    data, public = DATASETS["digits"](count=1), DATASETS["digits"](count=400, offset=100)
    model = MODELS["mlp"](data.spec, width=16)
    update = UPDATES["gradient"]()
    params = jax.jit(model.init)(jax.random.key(0))
    batch = data.batch(0, 1)
    grads = update.client(model, params, batch, jax.nn.one_hot(batch.labels, 10))
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[public.batch(i, 1) for i in range(400)])
    ranks = jax.tree.map(lambda s: s, trees.rank(trees.unravel(jax.random.uniform(jax.random.key(7), (trees.size(grads),)), grads)))

    def make(ratio):
        return batch, observe(model, update, params, grads, trees.top(ranks, trees.count(ratio, trees.size(grads))), public=batches)

    return make


class TestLearned:
    def test_it_reads_what_is_visible_and_falls_back_to_the_public_mean(self, client):
        errors = {}
        for ratio in (0.5, 1.0):
            batch, seen = client(ratio)
            told, report = estimate(seen, training=QUICK)
            errors[ratio] = float(((told.estimate - batch.inputs) ** 2).mean())
            mean = np.asarray(seen.public.inputs).mean(axis=0)
            if ratio == 1.0:
                np.testing.assert_allclose(told.estimate, mean, atol=1e-5)
                assert "hidden whole" in report
        assert errors[0.5] < 0.5 * errors[1.0]

    def test_hidden_values_are_never_read(self, client):
        _, seen = client(0.5)
        spoilt = seen.with_first(visible=jax.tree.map(lambda v, m: jnp.where(m, 1e3, v), seen.visible, seen.mask))
        np.testing.assert_array_equal(estimate(seen, training=QUICK)[0].estimate, estimate(spoilt, training=QUICK)[0].estimate)

    def test_a_decoder_is_trained_once_for_a_mask_and_again_where_its_checkpoint_is_damaged(self, client, tmp_path):
        kept, (_, seen), (_, other) = checkpoints.DiskCache(tmp_path / "decoders"), client(0.5), client(0.6)
        first = estimate(seen, kept, QUICK)[0].estimate
        np.testing.assert_array_equal(first, estimate(seen, kept, QUICK)[0].estimate)
        folders = list((tmp_path / "decoders").iterdir())
        assert len(folders) == 1
        estimate(other, kept, QUICK)
        assert len(list((tmp_path / "decoders").iterdir())) == 2
        for file in folders[0].rglob("*"):
            if file.is_file():
                file.write_bytes(b"damaged")
        np.testing.assert_array_equal(first, estimate(seen, kept, QUICK)[0].estimate)

    def test_an_attack_goes_on_from_the_estimate(self, client):
        batch, seen = client(0.5)
        told, _ = estimate(seen, training=QUICK)
        prepared = dataclasses.replace(idlg(num_steps=40, hidden="learned"), prepare=None)
        found = prepared.reconstruct(jax.random.key(0), told)
        assert float(((found.inputs - batch.inputs) ** 2).mean()) < float(((told.estimate - batch.inputs) ** 2).mean())

    def test_it_needs_public_data(self, client):
        _, seen = client(0.5)
        with pytest.raises(UsageError, match="at least 20 under `public`"):
            learned().reconstruct(jax.random.key(0), dataclasses.replace(seen, public=None))


@pytest.mark.parametrize(
    ("dataset", "model", "attack"),
    [
        ({"name": "digits", "count": 2}, {"name": "mlp", "width": 16}, {"name": "learned", "num_steps": 100, "num_features": 256, "width": 64}),
        ({"name": "digits", "count": 2}, {"name": "mlp", "width": 16}, {"name": "inverting_gradients", "hidden": "learned", "num_steps": 20}),
    ],
)
def test_in_a_cell_with_a_batch_of_two(dataset, model, attack):
    found = run_cell(dataset=dataset, model=model, update={"name": "gradient", "batch_size": 2}, metric="random", ratio=0.3, attack=attack, public=PUBLIC)
    assert np.isfinite(found.mse) and "decoder of 200 public batches" in found.report
    assert found.mse < 0.12


def test_on_text_it_gives_embeddings_that_are_read_as_tokens(text_problem):
    """Public sentences are of two kinds that end in any word; the decoder says of which kind the client's is."""
    p, kinds = text_problem(), jnp.asarray([[2, 7, 8, 9], [2, 11, 12, 13]])
    last = jax.random.randint(jax.random.key(5), (80, 1), 4, 30)
    ends = jnp.broadcast_to(jnp.asarray([3, 0]), (80, 2))
    tokens = jnp.concatenate([kinds[jnp.arange(80) % 2], last, ends], axis=1).astype(jnp.int32)[:, None]
    public = type(p.batch)(tokens, jnp.zeros((80, 1), jnp.int32), tokens != 0)
    attack = learned(num_features=256, width=64, num_steps=200)
    send = jax.jit(lambda params, batch: p.update.client(p.model, params, batch, jax.nn.one_hot(batch.labels, 3)))
    for kind in kinds:
        batch = dataclasses.replace(p.batch, inputs=p.batch.inputs.at[0, :4].set(kind), labels=jnp.zeros(1, jnp.int32))
        grads = send(p.params, batch)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), grads)
        found = attack.reconstruct(jax.random.key(0), observe(p.model, p.update, p.params, grads, nothing, valid=batch.valid, public=public))
        assert list(found.inputs[0, :4]) == list(kind) and list(found.inputs[0, 5:]) == [3, 0]
