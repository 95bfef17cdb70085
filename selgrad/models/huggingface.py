"""Hugging Face checkpoints of BERT and GPT-2: config.json and safetensors (also sharded), read and written by name.

Every field of a configuration that changes the forward pass is honoured or refused; dropout has no effect in evaluation mode.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from selgrad import files, trees
from selgrad.base import Params
from selgrad.errors import DataError, UsageError, first_line
from selgrad.models._transformer import ACTIVATIONS, Transformer, TransformerConfig
from selgrad.models.names import cleaned

_SHARED = (
    (r"layer_(\d+)/attention/(query|key|value)", r"encoder.layer.\1.attention.self.\2"),
    (r"layer_(\d+)/attention/output", r"encoder.layer.\1.attention.output.dense"),
    (r"layer_(\d+)/attention_norm", r"encoder.layer.\1.attention.output.LayerNorm"),
    (r"layer_(\d+)/mlp/up", r"encoder.layer.\1.intermediate.dense"),
    (r"layer_(\d+)/mlp/down", r"encoder.layer.\1.output.dense"),
    (r"layer_(\d+)/mlp_norm", r"encoder.layer.\1.output.LayerNorm"),
    (r"embeddings/(word|position|token_type)", r"embeddings.\1_embeddings"),
    (r"embeddings/norm", "embeddings.LayerNorm"),
    (r"pooler", "pooler.dense"),
)
_BERT = [
    *((ours, f"bert.{theirs}") for ours, theirs in _SHARED),
    (r"classifier", "classifier"),
    (r"masked_head/dense", "cls.predictions.transform.dense"),
    (r"masked_head/norm", "cls.predictions.transform.LayerNorm"),
    (r"masked_head", "cls.predictions"),
]
_GPT2 = [
    (r"layer_(\d+)/attention/qkv", r"transformer.h.\1.attn.c_attn"),
    (r"layer_(\d+)/attention/output", r"transformer.h.\1.attn.c_proj"),
    (r"layer_(\d+)/attention_norm", r"transformer.h.\1.ln_1"),
    (r"layer_(\d+)/mlp/up", r"transformer.h.\1.mlp.c_fc"),
    (r"layer_(\d+)/mlp/down", r"transformer.h.\1.mlp.c_proj"),
    (r"layer_(\d+)/mlp_norm", r"transformer.h.\1.ln_2"),
    (r"embeddings/word", "transformer.wte"),
    (r"embeddings/position", "transformer.wpe"),
    (r"final_norm", "transformer.ln_f"),
    (r"classifier", "score"),
]
_FRESH = ("classifier", "pooler", "masked_head")
"""Parts that a checkpoint may lack: they start fresh."""
_IGNORED = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|attn\.bias|attn\.masked_bias|inv_freq)$|cls\.|lm_head\.|classifier\.|score\.|(bert\.)?pooler\.|qa_outputs\."
)
"""Tensors that have no effect here: buffers of positions and causal masks, and heads of other tasks."""


def _folder_file(source: str, name: str) -> Path | None:
    """Returns a file of a local folder or a hub repository; None where there is none."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.is_absolute() or source.startswith(("./", "../", "~")) or source.count("/") > 1:
        raise DataError(f"checkpoint folder {source!r} does not exist; give a folder with config.json and safetensors, or a name on the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except LocalEntryNotFoundError:
        raise DataError(f"{source!r} is not a local folder and the Hugging Face hub cannot be reached; give the folder of a checkpoint") from None
    except EntryNotFoundError:
        return None
    except Exception as error:  # the hub's client raises errors of many packages; each means that the file could not be fetched
        raise DataError(f"{source!r} could not be read from the Hugging Face hub: {type(error).__name__}: {first_line(error)}") from None


def read_config(source: str, model_type: str) -> dict[str, Any]:
    """Reads config.json of a checkpoint.

    Raises:
      DataError: if it is missing or not JSON.
      UsageError: if it is for another architecture.
    """
    file = _folder_file(source, "config.json")
    if file is None:
        raise DataError(f"checkpoint {source!r} holds no config.json; give a Hugging Face folder")
    try:
        content = json.loads(files.read_text(file))
        kind = content.get("model_type")
    except (ValueError, OSError, AttributeError, RecursionError) as error:
        raise DataError(f"{str(file)!r} is not a readable configuration ({error})") from None
    if kind != model_type:
        raise UsageError(f"checkpoint {source!r} is of a {kind!r} model and this is {model_type!r}; choose the model of its name")
    result: dict[str, Any] = content
    return result


def _refuse(source: str, config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for key, values in allowed.items():
        if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in values):
            raise UsageError(f"checkpoint {source!r}: {key}={config[key]!r} is not built; this model honours {key} of {', '.join(map(repr, values))}")


_PLAIN: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "problem_type": (None, "single_label_classification"),
    "tie_word_embeddings": (True,),
    "quantization_config": (None,),
}


_MOST = {"num_hidden_layers": 1000, "n_layer": 1000}
"""Limits, and a million for every other number, beyond which a configuration counts as damaged."""


def _number(source: str, config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise DataError(f"checkpoint {source!r}: {key}={value!r} is not a positive number; config.json is damaged or of another model")
    return value


def _count(source: str, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = _number(source, config, key, default)
    if value != int(value) or value > _MOST.get(key, 10**6):
        raise DataError(f"checkpoint {source!r}: {key}={value!r} is not a number of anything that is built; config.json is damaged or of another model")
    return int(value)


def bert_config(source: str, *, lora_rank: int, lora_alpha: float) -> TransformerConfig:
    """Reads the configuration of a BERT checkpoint.

    Raises:
      UsageError: if it needs features that are not implemented: a decoder, relative positions, pruned heads, an unknown activation, untied embeddings.
      DataError: if it is missing or damaged.
    """
    stored = read_config(source, "bert")
    positions = {"is_decoder": (False,), "position_embedding_type": ("absolute", None), "hidden_act": tuple(ACTIVATIONS)}
    _refuse(source, stored, {**_PLAIN, **positions})
    number, count = functools.partial(_number, source, stored), functools.partial(_count, source, stored)
    return TransformerConfig(
        vocabulary_size=count("vocab_size"),
        max_positions=count("max_position_embeddings", 512),
        token_types=count("type_vocab_size", 2),
        width=count("hidden_size"),
        num_layers=count("num_hidden_layers"),
        num_heads=count("num_attention_heads"),
        mlp_width=count("intermediate_size"),
        activation=stored.get("hidden_act", "gelu"),
        epsilon=number("layer_norm_eps", 1e-12),
        initializer_range=number("initializer_range", 0.02),
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
    )


def gpt2_config(source: str, *, lora_rank: int, lora_alpha: float) -> TransformerConfig:
    """Reads the configuration of a GPT-2 checkpoint.

    Raises:
      UsageError: if it needs features that are not implemented.
      DataError: if it is missing or damaged.
    """
    stored = read_config(source, "gpt2")
    _refuse(source, stored, {**_PLAIN, "activation_function": tuple(ACTIVATIONS)})
    number, count = functools.partial(_number, source, stored), functools.partial(_count, source, stored)
    width = count("n_embd")
    return TransformerConfig(
        vocabulary_size=count("vocab_size"),
        max_positions=count("n_positions", 1024),
        token_types=0,
        width=width,
        num_layers=count("n_layer"),
        num_heads=count("n_head"),
        mlp_width=4 * width if stored.get("n_inner") is None else count("n_inner"),
        activation=stored.get("activation_function", "gelu_new"),
        epsilon=number("layer_norm_epsilon", 1e-5),
        scale_attention=bool(stored.get("scale_attn_weights", True)),
        scale_by_layer=bool(stored.get("scale_attn_by_inverse_layer_idx", False)),
        initializer_range=number("initializer_range", 0.02),
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
    )


def _theirs(model: Transformer, path: str) -> tuple[str, bool]:
    """Returns the Hugging Face name of one of our leaves, and whether the matrix is transposed there."""
    module, leaf = path.rsplit("/", 1)
    for pattern, replacement in _GPT2 if model.causal else _BERT:
        if re.fullmatch(pattern, module):
            name = re.sub(pattern, replacement, module)
            # torch's Linear keeps (out, in); GPT-2's Conv1D keeps (in, out) as we do.
            transposed = leaf == "kernel" and (not model.causal or module == "classifier")
            return f"{name}.{'bias' if leaf == 'bias' else 'weight'}", transposed
    raise KeyError(path)


def read_safetensors(file: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads all tensors of one file by name.

    Raises:
      DataError: if it is damaged.
    """
    try:
        return safetensors.numpy.load_file(file)
    except Exception as error:  # for a damaged header, and for types that NumPy lacks, such as 8-bit floats
        raise DataError(f"{str(file)!r} is damaged or is not a safetensors file ({error}); fetch it again") from None


def read_tensors(source: str) -> dict[str, npt.NDArray[Any]]:
    """Reads all tensors of a checkpoint by name; they are kept until the folder changes.

    Raises:
      DataError or DamagedError: if it cannot be read, or has changed since it was written.
    """
    return _read_tensors(source, files.stamp(Path(source).expanduser()))


@functools.lru_cache(maxsize=2)
def _read_tensors(source: str, stamp: tuple[Any, ...]) -> dict[str, npt.NDArray[Any]]:
    files.require_sealed(Path(source).expanduser())
    file = _folder_file(source, "model.safetensors")
    shards = [] if file is None else [file]
    if file is None:
        index = _folder_file(source, "model.safetensors.index.json")
        if index is None:
            raise DataError(f"checkpoint {source!r} holds no model.safetensors; save it in that format")
        try:
            names = sorted(set(json.loads(files.read_text(index))["weight_map"].values()))
            if any(not isinstance(name, str) or Path(name).name != name for name in names):
                raise ValueError("a shard is a file beside its index")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError):
            raise DataError(f"{str(index)!r} is not an index of shards; the checkpoint is damaged") from None
        for name in names:
            shard = _folder_file(source, name)
            if shard is None:
                raise DataError(f"checkpoint {source!r} lacks the shard {name!r} that its index names")
            shards.append(shard)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for part in shards:
        read = read_safetensors(part)
        twice = sorted(tensors.keys() & read.keys())
        if twice:
            raise DataError(f"checkpoint {source!r} holds {twice[0]!r} in two shards; the checkpoint is damaged")
        tensors |= read
    return tensors


def named_leaves(model: Transformer, params: Params) -> Iterator[tuple[str, str, bool]]:
    """Yields our path, the Hugging Face name and whether it is transposed there, for each leaf except adapters."""
    for path in trees.paths(params):
        if not path.endswith(("lora_a", "lora_b")):
            yield path, *_theirs(model, path)


def load_params(model: Transformer, fresh: Params) -> Params:
    """Replaces fresh weights by the checkpoint's; heads that it lacks stay fresh.

    Raises:
      DataError: if a tensor is missing, has another shape, is not finite, or does not belong to this architecture.
    """
    source = model.pretrained or ""
    tensors = cleaned(read_tensors(source))
    prefix = "transformer." if model.causal else "bert."
    leaves, treedef = dict(zip(trees.paths(fresh), jax.tree.leaves(fresh), strict=True)), jax.tree.structure(fresh)
    for path, name, transposed in named_leaves(model, fresh):
        # A checkpoint of the bare encoder has no prefix.
        stored = tensors.pop(name, None)
        if stored is None:
            stored = tensors.pop(name.removeprefix(prefix), None)
        if stored is None:
            if path.startswith(_FRESH):
                continue
            raise DataError(f"checkpoint {source!r} lacks the tensor {name!r}; {_why_missing(tensors, name.removeprefix(prefix))}")
        value = stored.T if transposed else stored
        if value.shape != leaves[path].shape:
            raise DataError(f"checkpoint {source!r}: {name!r} has shape {stored.shape}, which gives {value.shape} and not {leaves[path].shape}")
        if not np.isfinite(value.astype(np.float32)).all():
            raise DataError(f"checkpoint {source!r}: {name!r} holds NaN or infinity")
        leaves[path] = jnp.asarray(value, leaves[path].dtype)
    unknown = sorted(name for name in tensors if not _IGNORED.match(name))
    if unknown:
        raise DataError(f"checkpoint {source!r} holds {len(unknown)} tensors that no part of the model reads, such as {unknown[0]!r}; it is of another model")
    return jax.tree.unflatten(treedef, list(leaves.values()))


def _why_missing(tensors: Mapping[str, Any], name: str) -> str:
    """Says why a tensor may be missing: a prefix that is not known to us, or another model."""
    longer = next((other for other in tensors if other.endswith(f".{name}")), None)
    if longer is None:
        return "it is of another model or damaged"
    return f"it has {longer!r}, so strip the prefix {longer.removesuffix(name)!r} from the names of its tensors"


def save_pretrained(model: Transformer, params: Params, folder: str | Path) -> None:
    """Writes config.json and model.safetensors, which `transformers` reads, and `SHA256SUMS` of both.

    Raises:
      UsageError: if the model has adapters, which that format does not support.
    """
    config = model.config
    if config.lora_rank:
        raise UsageError("a checkpoint with adapters has no place in config.json and model.safetensors; merge them first")
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    files.unseal(root)
    heads = {"classification": "ForSequenceClassification", "causal_lm": "LMHeadModel", "masked_lm": "ForMaskedLM"}
    shared = {"tie_word_embeddings": True, "vocab_size": config.vocabulary_size, "initializer_range": config.initializer_range}
    if model.causal:
        name = "GPT2"
        own = {
            "model_type": "gpt2", "n_embd": config.width, "n_layer": config.num_layers, "n_head": config.num_heads, "n_inner": config.mlp_width,
            "n_positions": config.max_positions, "activation_function": config.activation, "layer_norm_epsilon": config.epsilon,
            "scale_attn_weights": config.scale_attention, "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
        }  # fmt: skip
    else:
        name = "Bert"
        own = {
            "model_type": "bert", "hidden_size": config.width, "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
            "intermediate_size": config.mlp_width, "max_position_embeddings": config.max_positions, "type_vocab_size": config.token_types,
            "hidden_act": config.activation, "layer_norm_eps": config.epsilon,
        }  # fmt: skip
    labels: dict[str, Any] = {}
    if model.task == "classification":
        count = model.input_spec.num_classes
        labels = {"id2label": {str(i): f"LABEL_{i}" for i in range(count)}, "label2id": {f"LABEL_{i}": i for i in range(count)}}
    content = {"architectures": [name + heads[model.task]], **shared, **own, **labels, "pad_token_id": model.input_spec.pad_id}
    files.write_text(root / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")
    tensors = {}
    for path, theirs, transposed in named_leaves(model, params):
        value = np.asarray(trees.subtree(params, path))
        tensors[theirs] = np.ascontiguousarray(value.T if transposed else value)
    files.write(root / "model.safetensors", lambda path: safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"}))
    files.seal(root, ["config.json", "model.safetensors"])
