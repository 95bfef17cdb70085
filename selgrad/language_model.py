"""The attacker's own language model: GPT-2 from a Hugging Face folder, or trained here on local text.

LAMP ranks token orders by the model's perplexity (balunovic2022lamp). The model reads the clients' token ids, so it must have their tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selgrad import files
from selgrad.base import LanguageModel, Params, TextSpec
from selgrad.data import TextDataset
from selgrad.errors import UsageError, require_positive, require_seed
from selgrad.models.gpt2 import gpt2
from selgrad.models.huggingface import save_pretrained
from selgrad.training import Journal


def load(folder: str, spec: TextSpec) -> tuple[LanguageModel, Params]:
    """Loads a causal GPT-2 and its parameters, for attacks on clients with this spec; they stay cached until the folder changes.

    Raises:
      UsageError: if its vocabulary size differs from the clients'.
      DataError: if the folder holds no checkpoint.
    """
    return _load(folder, spec, files.stamp(Path(folder).expanduser()))


@lru_cache(maxsize=2)
def _load(folder: str, spec: TextSpec, stamp: tuple[Any, ...]) -> tuple[LanguageModel, Params]:
    model = gpt2(spec, pretrained=folder, task="causal_lm")
    if model.vocabulary_size != spec.vocabulary_size:
        raise UsageError(
            f"the language model in {folder!r} knows {model.vocabulary_size} tokens and the clients' tokenizer {spec.vocabulary_size}; "
            "train one with the same --dataset and tokenizer (selgrad train-lm)"
        )
    return model, model.init(jax.random.key(0))


def train(
    dataset: TextDataset,
    out: str | Path,
    *,
    size: Any = "tiny",
    num_steps: int = 1000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    checkpoint_steps: int = 200,
    on_progress: Callable[[int, int, float], None] = lambda *_: None,
) -> dict[str, float]:
    """Trains a GPT-2 from scratch with Adam on a text data set and writes a Hugging Face folder; the same command resumes an interrupted training.

    A tenth of the samples is held out to measure the perplexity.

    Args:
      dataset: text; its tokenizer becomes the model's.
      out: folder for config.json and model.safetensors, and during training Orbax `checkpoints/`.
      size: tiny, mini, small or base.
      num_steps: of Adam, with a linear warm-up over a tenth of them and a cosine decay.
      batch_size: samples per step.
      learning_rate: at its peak.
      seed: of weights and sample order.
      checkpoint_steps: steps between two checkpoints.
      on_progress: called with (steps done, total steps, loss).

    Returns:
      The `loss` of the last step, the `held_out_perplexity`, and the perplexity of a model that knows only word frequencies, `unigram_perplexity`.

    Raises:
      UsageError: if the data set has fewer than 20 samples.
    """
    if len(dataset) < 20:
        raise UsageError(f"a language model needs at least 20 samples and the data set holds {len(dataset)}; raise count")
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size), ("checkpoint_steps", checkpoint_steps)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    require_positive(learning_rate=learning_rate)
    require_seed(seed)
    root, model = Path(out), gpt2(dataset.spec, size=size, task="causal_lm")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(dataset))
    held_out, trained = order[: len(dataset) // 10], order[len(dataset) // 10 :]
    warm_up = max(1, num_steps // 10)
    transformation = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm_up, num_steps), weight_decay=0.01)
    )  # fmt: skip

    def loss(params: Params, tokens: Any, valid: Any) -> Any:
        # Cross-entropy by gathering: one-hot labels over a vocabulary of 30,000 would need more memory than the model.
        per_sample = model.log_perplexity(params, tokens, valid)
        weights = valid[:, 1:].sum(axis=1)
        return (per_sample * weights).sum() / jnp.maximum(weights.sum(), 1)

    @jax.jit
    def step(params: Params, state: Any, tokens: Any, valid: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, tokens, valid)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = model.init(jax.random.key(seed))
    state = transformation.init(params)
    identity = {"size": size, "num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "samples": len(dataset)}
    journal = Journal(root, identity)
    before = journal.result
    if before is not None and (root / "model.safetensors").exists():
        return before
    latest: Any
    done, (params, state), latest = journal.newest((params, state))
    for number in range(done, num_steps):
        # Seeded by the step number, so that a resumed run draws the same batches as an uninterrupted one.
        chosen = np.random.default_rng([seed, number]).choice(trained, batch_size)
        params, state, latest = step(params, state, dataset.tokens[chosen], dataset.valid[chosen])
        if (number + 1) % checkpoint_steps == 0 or number + 1 == num_steps:
            journal.save(number + 1, (params, state), float(latest))
        if number % 10 == 0 or number + 1 == num_steps:
            on_progress(number + 1, num_steps, float(latest))
    measured = []
    for start in range(0, len(held_out), 32):
        part = held_out[start : start + 32]
        measured.append(float(loss(params, jnp.asarray(dataset.tokens[part]), jnp.asarray(dataset.valid[part]))))
    weights = [dataset.valid[held_out[i : i + 32]][:, 1:].sum() for i in range(0, len(held_out), 32)]
    counts: Any = np.bincount(dataset.tokens[trained][dataset.valid[trained]], minlength=dataset.spec.vocabulary_size) + 1.0
    unigram = -np.log(counts / counts.sum())[dataset.tokens[held_out][:, 1:][dataset.valid[held_out][:, 1:]]].mean()
    result = {"loss": float(latest), "held_out_perplexity": float(np.exp(np.average(measured, weights=weights))), "unigram_perplexity": float(np.exp(unigram))}
    save_pretrained(model, params, root)
    return journal.finish(result)
