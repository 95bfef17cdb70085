"""Text: token ids, decoded on the host, aligned by ROUGE and kept as sentences.

The measures are those of `selgrad.evaluation` that read sentences or tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from selgrad import files
from selgrad.base import Batch, Model, Params, Reconstruction, TextModel, TextSpec
from selgrad.data import Dataset, TextDataset
from selgrad.data import tokenizer as tokenizers
from selgrad.errors import DataError, UsageError
from selgrad.evaluation import MEASURES, align_texts, identified_sentences
from selgrad.evaluation.text import words
from selgrad.measures import Measure
from selgrad.modality.protocol import NUM_OTHERS, NUMBERS, Kept, LaneResult, Outcome, drawn, rounding

_SENTENCES = [measure for measure in MEASURES.values() if measure.reads == "sentences"]
_PADDING = 128
_GUESSES = 20
_TOKENS = [measure for measure in MEASURES.values() if measure.reads == "tokens"]


@dataclasses.dataclass(frozen=True)
class Text:
    """Sentences of one length and vocabulary."""

    spec: TextSpec

    @property
    def name(self) -> str:
        """The name "text"."""
        return "text"

    @property
    def judge(self) -> Measure:
        """The first measure of sentences with a threshold."""
        return next(measure for measure in _SENTENCES if measure.threshold is not None)

    @property
    def headline(self) -> Measure:
        """ROUGE-L."""
        return next(measure for measure in _SENTENCES if measure.headline)

    @property
    def output_dtype(self) -> Any:
        """The dtype of token ids."""
        return np.int32

    @property
    def bounds_all_samples(self) -> bool:
        """False, since sentences have different numbers of unknown coordinates."""
        return False

    def require_fitting(self, dataset: Dataset | TextDataset, model: Model) -> None:
        """Requires that the tokens are those that the checkpoint was trained on.

        The checkpoint's own tokenizer files must encode the data alike; where it has none, the sizes of the vocabularies must agree up to padding.
        """
        assert isinstance(dataset, TextDataset)
        pretrained, size = getattr(model, "pretrained", None), getattr(model, "vocabulary_size", self.spec.vocabulary_size)
        if pretrained is None:
            return
        remedy = f"give the data set the model's own, tokenizer={pretrained}"
        try:
            theirs = tokenizers.from_files(pretrained)
        except DataError:
            # The checkpoint has no tokenizer files; vocabularies are padded to a multiple of at most 128.
            if size - self.spec.vocabulary_size >= _PADDING:
                raise UsageError(
                    f"the data set's tokenizer knows {self.spec.vocabulary_size:,} tokens and the checkpoint {pretrained!r} was trained on {size:,}; "
                    "give the data set the model's tokenizer"
                ) from None
            return
        texts = [dataset.decode(tokens) for tokens in dataset.tokens[:8]]
        if any(theirs.encode(text) != dataset.tokenizer.encode(text) for text in texts):
            raise UsageError(f"the data set's tokenizer is not that of the checkpoint {pretrained!r}, which would read other words; {remedy}")

    def require_telling(self, dataset: Dataset | TextDataset, rows: Sequence[int]) -> None:
        """Refuses sentences without a word, on which nothing could be measured.

        Raises:
          UsageError: if there is such a sentence; the message names the first.
        """
        assert isinstance(dataset, TextDataset)
        for row in rows:
            text = dataset.decode(dataset.tokens[row])
            if not words(text):
                raise UsageError(f"sentence {row} of the data set, {text!r}, holds no word, so nothing of it can be measured; leave it out")

    def guess(self, public: Batch | None, dataset: Dataset | TextDataset) -> Any:
        """Returns some public sentences, or none without public data."""
        if public is None:
            return ()
        assert isinstance(dataset, TextDataset)
        tokens = np.asarray(public.inputs).reshape(-1, *self.spec.shape)
        return tuple(dataset.decode(sequence) for sequence in tokens[:_GUESSES])

    def near(self, embedded: Array) -> Array:
        """Moves embeddings by one part in a million of their root mean square."""
        return embedded + rounding(embedded) * jnp.sqrt(jnp.mean(embedded**2))

    def measure(self, batch: Batch, reconstruction: Reconstruction, guess: Any) -> Outcome:
        """Returns the numbers that the attack reports; sentences are measured on the host, where they are decoded."""
        return Outcome({name: getattr(reconstruction, name) for name in NUMBERS}, reconstruction.inputs, reconstruction.labels)

    def others(self, everything: Dataset | TextDataset, own: Dataset | TextDataset) -> Any:
        """Returns sentences."""
        assert isinstance(everything, TextDataset)
        assert isinstance(own, TextDataset)
        mine = dict.fromkeys(own.decode(tokens) for tokens in own.tokens)
        texts = dict.fromkeys(everything.decode(everything.tokens[row]) for row in drawn(len(everything)))
        return (*(text for text in texts if text not in mine), *mine)[:NUM_OTHERS]

    def level(self, measures: Mapping[str, float], told_labels: bool) -> str:
        """Returns the level; exact is a sentence without an error, and its class or half of its words are attributes.

        A result that has not moved is a draw from prior knowledge.
        """
        if not measures["moved"]:
            return "nothing"
        if measures["exact_match"] > 0:
            return "exact"
        if measures["identified"] > 0:
            return "recognisable"
        label_found = measures["label_correct"] == 1 and not told_labels
        return "attribute" if label_found or measures["rouge1"] >= 0.5 else "nothing"

    def finish(self, dataset: Dataset | TextDataset, model: Model, batch: Batch, result: LaneResult, guess: Any, others: Any) -> LaneResult:
        """Decodes, aligns and measures."""
        assert isinstance(dataset, TextDataset)
        truths, texts = ([dataset.decode(sequence) for sequence in tokens] for tokens in (batch.inputs, result.outputs))
        order = align_texts(truths, texts)
        outputs, labels, texts = result.outputs[order], result.labels[order], [texts[i] for i in order]
        content = np.asarray(batch.valid) & ~np.isin(batch.inputs, self.spec.special_ids)
        measures = {measure.name: float(measure.of(batch.inputs, outputs, content)) for measure in _TOKENS if measure.of is not None}
        for measure in _SENTENCES:
            assert measure.of is not None
            measures[measure.name] = float(np.mean([measure.of(t, f) for t, f in zip(truths, texts, strict=True)]))
        measures["identified"] = identified_sentences(truths, texts, tuple(text for text in others if text not in truths))
        judge = self.judge
        assert judge.of is not None
        guessed = [float(np.mean([judge.of(t, g) for g in guess])) if guess else 0.0 for t in truths]
        measures["better_than_prior"] = float(not result.measures["diverged"] and measures[judge.name] > np.mean(guessed))
        wanted = np.asarray(model.targets(jax.tree.map(jnp.asarray, batch)))
        measures["label_correct"] = float((labels == wanted)[wanted >= 0].mean())
        if result.measures["diverged"]:
            measures = {**dict.fromkeys(measures, float("nan")), "better_than_prior": 0.0}
        return LaneResult({**result.measures, **measures}, outputs, labels, tuple(truths), tuple(texts))

    def shown(self, batch: Batch, result: LaneResult) -> tuple[Any, Any]:
        """Returns sentences."""
        return result.truth, result.texts

    def public(self, load: Any, dataset: Dataset | TextDataset, label: str) -> Dataset | TextDataset:
        """Returns public text cut and padded to the clients' length, as an attacker would, with their vocabulary."""
        length = self.spec.shape[0]
        data: Dataset | TextDataset = load(length)
        if isinstance(data, TextDataset) and data.spec.shape[0] < length:
            data = data.padded(length)
        if data.spec.shape != self.spec.shape or not isinstance(data.spec, TextSpec):
            raise UsageError(f"public: {label} holds inputs of shape {data.spec.shape}, and the clients' have shape {self.spec.shape}")
        if data.spec != self.spec:
            raise UsageError(f"public: {label} has another vocabulary than the clients' data; give both the same tokenizer folder")
        return data

    def unknown(self, batch: Batch, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Returns all coordinates except those of padding and of the tokens that open and close a sentence, which are known."""
        unknown = np.ones(batch.inputs.shape, bool) if batch.valid is None else np.asarray(batch.valid)
        unknown = unknown & ~np.isin(np.asarray(batch.inputs), self.spec.special_ids)
        return np.broadcast_to(unknown[..., None], shape).reshape(-1)

    def unit(self, shape: Sequence[int]) -> npt.NDArray[np.float64]:
        """Returns 1 for every coordinate of an embedding."""
        return np.ones(int(np.prod(shape)))

    def prior(self, model: Model, params: Params, public: Batch | None) -> Any:
        """Returns the inverse variance of a random token's embedding."""
        words = jnp.arange(self.spec.vocabulary_size)[None]
        return 1 / float(jnp.var(model.embed(params, words[:, : self.spec.shape[0]])))

    def columns(self, model: Model) -> dict[str, str]:
        """Returns whether word embeddings are frozen, sent, or always encrypted."""
        return {"embedding": model.exposure if isinstance(model, TextModel) else ""}

    def keep_truth(self, file: Path, batch: Batch) -> None:
        """Does nothing, since galleries of text hold the truth themselves."""

    def keep_gallery(self, file: Path, kept: Sequence[Kept]) -> None:
        """Keeps sentences with their titles as `<stem>.json`."""
        rows = [{**entry.title, "truth": list(entry.found.truth), "found": list(entry.found.texts)} for entry in kept]
        files.write_json(file.with_suffix(".json"), {"sentences": rows})
