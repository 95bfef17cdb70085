"""Checkpoints of Hugging Face whose files say what no model is: one line each, and nothing is read beside the folder."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from selgrad.base import TextSpec
from selgrad.errors import SelgradError
from selgrad.models import MODELS
from selgrad.models import huggingface as hf

SPEC = TextSpec((8,), 2, 20, 0, 1, 2, (0, 1, 2))
BASE = {
    "model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 16, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 8.5}, {"hidden_size": 7}, {"num_attention_heads": 3}, {"num_hidden_layers": 1e9}, {"num_hidden_layers": 2.5}, {"hidden_size": float("inf")},
        {"hidden_size": float("nan")}, {"vocab_size": 2**40}, {"vocab_size": "20"}, {"layer_norm_eps": float("inf")}, {"hidden_act": []}, {"hidden_act": {}}, {"hidden_act": None},
        {"pruned_heads": {"0": [1]}}, {"max_position_embeddings": 2}, {"num_hidden_layers": True}, {"type_vocab_size": -1}, {"model_type": []},
    ],
)  # fmt: skip
def test_a_configuration_of_no_model_is_one_line(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps({**BASE, **change}))
    with pytest.raises(SelgradError) as caught:
        jax.eval_shape(MODELS["bert"](SPEC, pretrained=str(tmp_path)).init, jax.random.key(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "5", "null", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": null}}'])
def test_an_index_of_no_shards_is_one_line(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SelgradError, match="not an index of shards"):
        hf.read_tensors(str(tmp_path))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SelgradError) as caught:
        hf.read_config(str(tmp_path), "bert")
    assert "\n" not in str(caught.value)


def test_a_shard_lies_beside_its_index(tmp_path):
    (tmp_path / "model").mkdir()
    safetensors.numpy.save_file({"x": np.ones(2)}, tmp_path / "secret.safetensors")
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "a/b.safetensors", ".."):
        (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(SelgradError, match="not an index of shards|lacks the shard"):
            hf.read_tensors(str(tmp_path / "model"))
