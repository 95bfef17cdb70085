"""Tokenizers: WordPiece and byte-level BPE from local files or the hub, and an embedded word-level one that needs no file.

The first two are Hugging Face's `tokenizers`; a folder may hold tokenizer.json, vocab.txt (BERT) or vocab.json and merges.txt (GPT-2).
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from selgrad.errors import DataError, UsageError

_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
      encode: text -> ids, with start and end where the tokenizer has them.
      decode: ids -> text, special tokens left out.
      size: number of ids.
      pad_id, start_id, end_id: special ids; None where there is none.
      special_ids: all of them, [MASK] and [UNK] too.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    size: int
    pad_id: int
    start_id: int | None
    end_id: int | None
    special_ids: tuple[int, ...]


def words(texts: Sequence[str]) -> Tokenizer:
    """A word-level tokenizer over the words of the given texts, most frequent first; lower case, [CLS] and [SEP] around a sentence."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    counts = collections.Counter(word for text in texts for word in _WORD.findall(text.lower()))
    vocabulary = special + sorted(counts, key=lambda word: (-counts[word], word))
    index = {word: i for i, word in enumerate(vocabulary)}

    def encode(text: str) -> list[int]:
        return [2, *(index.get(word, 1) for word in _WORD.findall(text.lower())), 3]

    def decode(ids: Sequence[int]) -> str:
        return " ".join(vocabulary[i] for i in ids if i >= len(special))

    return Tokenizer(encode, decode, len(vocabulary), 0, 2, 3, (0, 1, 2, 3))


def from_files(source: str) -> Tokenizer:
    """A tokenizer from a folder, or by its name on the Hugging Face hub.

    Raises:
      DataError: if nothing there is a tokenizer.
    """
    import tokenizers
    from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer  # type: ignore[attr-defined]

    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            if (folder / "tokenizer.json").is_file():
                loaded = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            elif (folder / "vocab.txt").is_file():
                loaded = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)._tokenizer
            elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                loaded = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))._tokenizer
            else:
                raise DataError(f"folder {source!r} holds no tokenizer.json, vocab.txt, or vocab.json with merges.txt")
        elif folder.is_absolute() or source.startswith(("./", "../", "~")) or source.count("/") > 1:
            raise DataError(f"tokenizer folder {source!r} does not exist; give a folder, a name on the hub, or 'words'")
        else:
            loaded = tokenizers.Tokenizer.from_pretrained(source)
    except DataError:
        raise
    except Exception as error:  # the Rust library raises bare exceptions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"tokenizer {source!r} could not be read ({reason}); give a folder with tokenizer files, or 'words'") from None
    loaded.no_padding()
    loaded.no_truncation()
    size = loaded.get_vocab_size()
    start, end = loaded.token_to_id("[CLS]"), loaded.token_to_id("[SEP]")
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>")
    special = tuple(i for i in map(loaded.token_to_id, names) if i is not None)
    pad = loaded.token_to_id("[PAD]")
    if pad is None:
        # GPT-2 has no padding token; its end of text serves.
        pad = loaded.token_to_id("<|endoftext|>")
    return Tokenizer(
        encode=lambda text: loaded.encode(text).ids,
        decode=lambda ids: loaded.decode([i for i in ids if i not in special]).strip(),
        size=size,
        pad_id=0 if pad is None else pad,
        start_id=start,
        end_id=end,
        special_ids=special,
    )


def make(name: str, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer of a data set's argument: `words`, a folder, or a name on the hub.

    Raises:
      UsageError: if there is no text to take words from.
      DataError: if files are missing or damaged.
    """
    if name == "words":
        if not texts:
            raise UsageError("tokenizer='words' takes its vocabulary from the texts, and there are none")
        return words(texts)
    return from_files(name)
