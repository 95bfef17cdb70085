"""Text data: real files in their original formats, tokenizers against transformers' own, and every way for a file to be wrong."""

import numpy as np
import pytest

from selgrad.data import DATASETS
from selgrad.data.tokenizer import from_files
from selgrad.errors import DataError, UsageError

SENTENCES = ["The more he reads, the more books I wonder to whom he will give.", "naïve café: 42% of $3.50!", "unbelievableness"]


@pytest.mark.parametrize(
    ("name", "folder", "arguments", "count"),
    [
        ("cola", "cola", {"split": "train"}, 4276), ("cola", "cola", {"split": "dev"}, 264), ("cola", "cola", {"split": "out_of_domain"}, 258),
        ("sst2", "sst2", {"split": "train"}, 10000), ("sst2", "sst2", {"split": "dev"}, 437), ("rotten_tomatoes", "mr", {}, 5332),
    ],
)  # fmt: skip
def test_real_files(data_folder, name, folder, arguments, count):
    data = DATASETS[name](path=str(data_folder / folder), **arguments)
    assert len(data) == count and set(data.labels) == {0, 1}
    assert data.tokens.shape == data.valid.shape == (count, data.spec.shape[0])
    assert (data.tokens[~data.valid] == data.spec.pad_id).all() and data.valid[:, 0].all()


def test_the_first_sentences_are_those_of_the_files(data_folder):
    cola = DATASETS["cola"](path=str(data_folder / "cola"), count=1, tokenizer=str(data_folder / "tokenizers" / "bert-base-uncased"))
    # WordPiece does not keep where spaces were.
    assert cola.decode(cola.tokens[0]).replace(" ", "") == "our friends won't buy this analysis, let alone the next one we propose.".replace(" ", "")
    sst2 = DATASETS["sst2"](path=str(data_folder / "sst2"), count=2, tokenizer=str(data_folder / "tokenizers" / "gpt2"))
    assert sst2.decode(sst2.tokens[0]) == "when are bears bears and" and sst2.labels[0] == 1
    mr = DATASETS["rotten_tomatoes"](path=str(data_folder / "mr"), count=2)
    assert mr.labels.tolist() == [0, 1]
    play = DATASETS["shakespeare"](path=str(data_folder / "tinyshakespeare"), count=1)
    assert play.decode(play.tokens[0]).startswith("first citizen :")


@pytest.mark.parametrize("text", SENTENCES)
def test_tokenizers_agree_with_transformers(data_folder, text):
    import transformers

    folder = data_folder / "tokenizers"
    theirs = transformers.BertTokenizer(vocab=str(folder / "bert-base-uncased" / "vocab.txt"))
    ours = from_files(str(folder / "bert-base-uncased"))
    assert ours.encode(text) == theirs(text)["input_ids"] and ours.size == 30522
    assert (ours.pad_id, ours.start_id, ours.end_id) == (0, 101, 102)
    theirs = transformers.GPT2Tokenizer(vocab=str(folder / "gpt2" / "vocab.json"), merges=str(folder / "gpt2" / "merges.txt"))
    ours = from_files(str(folder / "gpt2"))
    assert ours.encode(text) == theirs(text)["input_ids"] and ours.decode(ours.encode(text)) == text
    assert (ours.size, ours.pad_id, ours.start_id) == (50257, 50256, None)


def test_embedded_sentences_need_no_file():
    data = DATASETS["sentences"]()
    assert len(data) == 60 and np.bincount(data.labels).tolist() == [20, 20, 20]
    assert len({data.decode(tokens) for tokens in data.tokens}) == 60
    assert (data.tokens[:, 0] == data.spec.start_id).all()
    batch = data.batch(1, 2)
    np.testing.assert_array_equal(batch.inputs, data.tokens[2:4])
    short = DATASETS["sentences"](max_length=6, count=3)
    assert short.tokens.shape == (3, 6) and (short.tokens[:, 5] == short.spec.end_id).all()


def test_files_that_are_wrong_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        DATASETS["cola"](path=str(tmp_path / "nothing"))
    (tmp_path / "in_domain_train.tsv").write_text("gj04\t1\t\tA sentence.\ngj04\t1\n")
    with pytest.raises(DataError, match="line 2"):
        DATASETS["cola"](path=str(tmp_path))
    (tmp_path / "train.tsv").write_text("text\tclass\n")
    with pytest.raises(DataError, match="columns sentence and label"):
        DATASETS["sst2"](path=str(tmp_path))
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ngood\t7\n")
    with pytest.raises(DataError, match="line 2"):
        DATASETS["sst2"](path=str(tmp_path))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not readable text"):
        DATASETS["text_file"](path=str(tmp_path / "bytes.txt"))
    with pytest.raises(DataError, match="holds no tokenizer.json"):
        DATASETS["sentences"](tokenizer=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="could not be read"):
        DATASETS["sentences"](tokenizer=str(tmp_path))
    with pytest.raises(UsageError, match="there are 60"):
        DATASETS["sentences"](offset=60)
    with pytest.raises(UsageError, match="max_length=3"):
        DATASETS["sentences"](max_length=3)


def test_the_hub_needs_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("cola", "sst2", "rotten_tomatoes"):
        with pytest.raises(UsageError, match=r"selgrad\[hub\]"):
            DATASETS[name]()
