"""Tokenizers: WordPiece and byte-level BPE from local files or the hub, and a built-in word-level one that needs no file.

The first two are Hugging Face's `tokenizers`; a folder may hold tokenizer.json, vocab.txt (BERT) or vocab.json and merges.txt (GPT-2).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selgrad import files
from selgrad.errors import DataError, UsageError, first_line

_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A map from text to token ids and back.

    Attributes:
      encode: text -> ids, with start and end where the tokenizer has them.
      decode: ids -> text, without special tokens.
      size: number of ids.
      pad_id, start_id, end_id: special ids; None where there is none.
      special_ids: all special ids, also of [MASK] and [UNK].
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    size: int
    pad_id: int
    start_id: int | None
    end_id: int | None
    special_ids: tuple[int, ...]


def words(texts: Sequence[str]) -> Tokenizer:
    """Makes a lower-case word-level tokenizer over the words of texts, most frequent first, with [CLS] and [SEP] around a sentence."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    counts = collections.Counter(word for text in texts for word in _WORD.findall(text.lower()))
    vocabulary = special + sorted(counts, key=lambda word: (-counts[word], word))
    index = {word: i for i, word in enumerate(vocabulary)}

    def encode(text: str) -> list[int]:
        return [2, *(index.get(word, 1) for word in _WORD.findall(text.lower())), 3]

    def decode(ids: Sequence[int]) -> str:
        return " ".join(vocabulary[i] for i in ids if i >= len(special))

    return Tokenizer(encode, decode, len(vocabulary), 0, 2, 3, (0, 1, 2, 3))


_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
MOST_IDS = 2**24
"""Beyond the number of ids of any vocabulary."""
_NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>", "<pad>", "<unk>", "<s>", "</s>", "<mask>")
"""Names of special tokens, used where no file says which they are."""


def _read_facts(folder: Path, name: str) -> dict[str, Any]:
    """Reads a JSON file next to a tokenizer; the result is empty where there is none.

    Raises:
      DataError: if it is not a valid JSON object.
    """
    file = folder / name
    if not file.is_file():
        return {}
    try:
        content = json.loads(files.read_text(file))
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{str(file)!r} is not readable JSON ({type(error).__name__}); fetch it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{str(file)!r} holds no JSON object; fetch it again")
    return content


def _named(facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns role -> token from a tokenizer's configuration, which writes tokens as text or as objects."""
    named = {role: facts[role].get("content") if isinstance(facts[role], dict) else facts[role] for role in _ROLES if facts.get(role) is not None}
    return {role: token for role, token in named.items() if isinstance(token, str)}


def _flag(facts: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    value = facts.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"tokenizer_config.json: {key}={value!r} is neither true nor false; fetch it again")
    return value


def of_library(loaded: Any, named: Mapping[str, str] | None = None, source: str = "tokenizer") -> Tokenizer:
    """Wraps a tokenizer of the package tokenizers and probes it: an empty sentence shows its opening and closing token.

    Args:
      loaded: a `tokenizers.Tokenizer`.
      named: special tokens by role (`pad_token` and so on), from the files next to it.
      source: its name in errors.

    Raises:
      DataError: if it holds no tokens.
    """
    named = named or {}
    vocabulary = loaded.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise DataError(f"{source}: the tokenizer knows no token")
    if max(vocabulary.values()) >= MOST_IDS:
        raise DataError(f"{source}: its ids go up to {max(vocabulary.values()):,}, and an embedding has a row for each; the file is damaged")
    added = loaded.get_added_tokens_decoder() if hasattr(loaded, "get_added_tokens_decoder") else {}
    special = {number for number, token in added.items() if token.special}
    special |= {vocabulary[token] for token in (*named.values(), *_NAMES) if token in vocabulary}

    def encode(text: str) -> list[int]:
        try:
            return list(loaded.encode(text).ids)
        except Exception as error:  # the Rust library raises bare exceptions, such as for a word while there is no [UNK]
            reason = first_line(error)
            raise DataError(
                f"{source}: the tokenizer cannot encode {text[:40]!r} ({reason}); is its vocabulary whole, with a token for unknown words?"
            ) from None

    special_around = encode("")
    start = special_around[0] if special_around and (len(special_around) > 1 or encode("a")[0] == special_around[0]) else None
    end = special_around[-1] if len(special_around) > 1 or (special_around and start is None) else None
    if start is not None:
        special |= set(special_around)
    pad = vocabulary.get(named.get("pad_token", "[PAD]"), vocabulary.get("<pad>"))
    if pad is None:
        # GPT-2 has no padding token; its end-of-text token is used instead.
        pad = vocabulary.get(named.get("eos_token", "<|endoftext|>"), 0)
    return Tokenizer(
        encode=encode,
        decode=lambda ids: str(loaded.decode([i for i in ids if i not in special])).strip(),
        # Ids may have gaps; an embedding has a row for each id up to the largest.
        size=max(vocabulary.values()) + 1,
        pad_id=pad,
        start_id=start,
        end_id=end,
        special_ids=tuple(sorted(special)),
    )


def _add(loaded: Any, folder: Path) -> None:
    """Adds the tokens of `added_tokens.json`, which vocabularies of older tokenizers lack.

    Raises:
      DataError: if their ids do not follow the vocabulary's.
    """
    import tokenizers

    added = _read_facts(folder, "added_tokens.json")
    for token, number in sorted(added.items(), key=lambda item: str(item[1]).zfill(20)):
        loaded.add_tokens([tokenizers.AddedToken(token, normalized=False)])
        if (found := loaded.token_to_id(token)) != number:
            raise DataError(f"{str(folder / 'added_tokens.json')!r} gives {token!r} the id {number!r} and it would have {found}; fetch it again")


def _normalise_as(loaded: Any, facts: Mapping[str, Any]) -> None:
    """Normalises text as `tokenizer_config.json` says, which counts before `tokenizer.json` for BERT's tokenizers, as in transformers."""
    from tokenizers import normalizers

    keys = {"do_lower_case": "lowercase", "strip_accents": "strip_accents", "tokenize_chinese_chars": "handle_chinese_chars"}
    if isinstance(loaded.normalizer, normalizers.BertNormalizer):
        for key, option in keys.items():
            if facts.get(key) is not None:
                setattr(loaded.normalizer, option, _flag(facts, key, None))


def _frame_as_roberta(loaded: Any, facts: Mapping[str, Any]) -> None:
    """Puts a sentence between `<s>` and `</s>` where a byte-level vocabulary has them, as RoBERTa and BART do and GPT-2, which has neither, does not."""
    from tokenizers.processors import RobertaProcessing

    named = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", **_named(facts)}
    start, end = ((named[role], loaded.token_to_id(named[role])) for role in ("cls_token", "sep_token"))
    if start[1] is None or end[1] is None or str(facts.get("tokenizer_class", "")).startswith("GPT2"):
        return
    loaded.add_special_tokens([token for token in named.values() if loaded.token_to_id(token) is not None])
    loaded.post_processor = RobertaProcessing((end[0], end[1]), (start[0], start[1]))


def from_files(source: str) -> Tokenizer:
    """Loads a tokenizer from a folder or by its name on the Hugging Face hub, with `tokenizer_config.json` and `special_tokens_map.json` next to it.

    Raises:
      DataError: if no tokenizer is found there.
    """
    import tokenizers
    from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer  # type: ignore[attr-defined]

    folder = Path(source).expanduser()
    facts: dict[str, Any] = {}
    try:
        if folder.is_dir():
            facts = {**_read_facts(folder, "special_tokens_map.json"), **_read_facts(folder, "tokenizer_config.json")}
            if (folder / "tokenizer.json").is_file():
                loaded = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
                _normalise_as(loaded, facts)
            elif (folder / "vocab.txt").is_file():
                options: Any = {role: token for role, token in _named(facts).items() if role not in ("bos_token", "eos_token")}
                options |= {"lowercase": _flag(facts, "do_lower_case", True), "strip_accents": _flag(facts, "strip_accents", None)}
                options["handle_chinese_chars"] = _flag(facts, "tokenize_chinese_chars", True)
                # A line each; a byte-order mark is none of the first token's characters.
                lines = files.read_text(folder / "vocab.txt").split("\n")
                numbered = {line.rstrip(): number for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
                loaded = BertWordPieceTokenizer(numbered, **options)._tokenizer
                _add(loaded, folder)
            elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                loaded = ByteLevelBPETokenizer(
                    str(folder / "vocab.json"), str(folder / "merges.txt"), add_prefix_space=bool(_flag(facts, "add_prefix_space", False))
                )._tokenizer
                _add(loaded, folder)
                _frame_as_roberta(loaded, facts)
            else:
                raise DataError(f"folder {source!r} holds no tokenizer.json, vocab.txt, or vocab.json with merges.txt")
        elif folder.is_absolute() or source.startswith(("./", "../", "~")) or source.count("/") > 1:
            raise DataError(f"tokenizer folder {source!r} does not exist; give a folder, a name on the hub, or 'words'")
        else:
            loaded = tokenizers.Tokenizer.from_pretrained(source)
        loaded.no_padding()
        loaded.no_truncation()
    except DataError:
        raise
    except Exception as error:  # the Rust library raises bare exceptions
        reason = first_line(error)
        raise DataError(f"tokenizer {source!r} could not be read ({reason}); give a folder with tokenizer files, or 'words'") from None
    return of_library(loaded, _named(facts), f"tokenizer {source!r}")


def make(name: str, texts: Sequence[str]) -> Tokenizer:
    """Makes the tokenizer named by a data set's argument: `words`, a folder, or a name on the hub.

    Raises:
      UsageError: if there is no text from which to take words.
      DataError: if files are missing or damaged.
    """
    if name == "words":
        if not texts:
            raise UsageError("tokenizer='words' takes its vocabulary from the texts, and there are none")
        return words(texts)
    return from_files(name)
