"""Input as it comes in practice, and as nobody should send it: each test is of a kind, so that the kind does not come back."""

import gzip
import inspect
import io
import json
import os
import pickle
import string
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selgrad.data import DATASETS
from selgrad.data.idx import read_idx
from selgrad.data.pictures import read, to_rgb
from selgrad.data.text import read_lines
from selgrad.data.tokenizer import from_files
from selgrad.errors import DataError, UsageError

LINE = st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]), max_size=20)


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(LINE, min_size=1), ending=st.sampled_from(["\n", "\r\n", "\r"]), mark=st.booleans(), closed=st.booleans())
def test_lines_end_where_files_say(tmp_path_factory, lines, ending, mark, closed):
    if lines[0].startswith("\ufeff") or (not closed and lines[-1] == ""):
        return
    file = tmp_path_factory.mktemp("lines") / "text"
    file.write_bytes((b"\xef\xbb\xbf" if mark else b"") + (ending.join(lines) + (ending if closed else "")).encode())
    assert read_lines(file) == lines


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [("sst2", "train.tsv", "sentence\tlabel\ngood film\t1\n\nbad film\t0\n\n"), ("cola", "in_domain_train.tsv", "g\t1\t\ta cat sat\n\ng\t0\t*\tcat a sat\n\n")],
)
def test_an_empty_line_is_no_damage(tmp_path, name, file, text):
    (tmp_path / file).write_text(text)
    assert len(DATASETS[name](path=str(tmp_path))) == 2


def picture(mode, levels):
    """A picture of 1 x n pixels with these shares of white."""
    grey = np.asarray(levels)
    made = {
        "L": lambda: Image.fromarray(np.round(grey * 255).astype(np.uint8)[None]),
        "I;16": lambda: Image.fromarray(np.round(grey * 65535).astype(np.uint16)[None]),
        "I": lambda: Image.fromarray(np.round(grey * 65535).astype(np.int32)[None]),
        "F": lambda: Image.fromarray(grey.astype(np.float32)[None]),
    }
    image = made[mode]() if mode in made else made["L"]().convert(mode)
    assert image.mode == mode
    return image


@settings(max_examples=100, deadline=None)
@given(mode=st.sampled_from(["L", "RGB", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"]), levels=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_black_is_0_and_white_is_1_in_every_mode(mode, levels):
    found = to_rgb(picture(mode, levels), "it")
    shares = found / 255 if found.dtype == np.uint8 else found
    assert found.shape == (1, len(levels), 3) and (shares == shares[..., :1]).all()
    # Half a grey level of what was given: 8 bits, or finer.
    np.testing.assert_allclose(shares[0, :, 0], levels, atol=0.501 / 255 if mode not in ("I;16", "I", "F") else 1e-5)


def test_a_16_bit_file_keeps_its_levels_beside_8_bit_ones(tmp_path):
    for name, image in (("a", picture("I;16", [0, 0.1, 0.5001, 1])), ("b", picture("L", [1, 0, 0, 1]))):
        (tmp_path / name).mkdir()
        image.resize((4, 3), Image.Resampling.NEAREST).save(tmp_path / name / "x.png")
    pixels = DATASETS["image_folder"](path=str(tmp_path)).pixels
    np.testing.assert_allclose(pixels[:, 0, :, 0], [[0, 0.1, 0.5001, 1], [1, 0, 0, 1]], atol=1e-4)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((4, 4), 2.0, np.float32)), "floats outside"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "floats outside"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "16 bits end at 65535"),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "transparent pixels"),
        (Image.new("RGB", (2**14, 2**13)), "pixels large"),
    ],
)
def test_what_has_no_one_reading_is_refused(image, message):
    with pytest.raises(DataError, match=message):
        to_rgb(image, "it")


def test_pictures_stand_upright(tmp_path):
    image, exif = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), np.rot90(np.asarray(image), -1))


def test_what_is_hidden_is_no_data(tmp_path):
    for place in ("a/x.png", "b/y.png", "b/deep/z.png", ".ipynb_checkpoints/x.png", "a/.x.png", "__MACOSX/a/x.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / place)
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    data = DATASETS["image_folder"](path=str(tmp_path))
    assert data.spec.num_classes == 2 and data.labels.tolist() == [0, 1, 1]
    (tmp_path / "c").symlink_to(tmp_path / "b" / "deep")
    with pytest.raises(DataError, match=r"/c' holds no picture of its own"):
        DATASETS["image_folder"](path=str(tmp_path))
    (tmp_path / "c").unlink()
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a link to"):
        DATASETS["image_folder"](path=str(tmp_path))


@pytest.mark.parametrize("order", [False, True])
def test_a_folder_is_the_same_data_in_any_order(tmp_path, monkeypatch, order):
    """File systems list names in orders of their own."""
    for place in ("a/x.png", "b/y.png", "b/deep/z.png", "$RECYCLE.BIN/x.png", "lost+found/x.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / place)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "deep")
    scan = os.scandir

    class Listed:
        def __init__(self, path):
            with scan(path) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=order))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __iter__(self):
            return self.entries

        def __next__(self):
            return next(self.entries)

        def close(self):
            pass

    monkeypatch.setattr(os, "scandir", Listed)
    data = DATASETS["image_folder"](path=str(tmp_path))
    assert data.spec.num_classes == 2 and data.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("content", [None, "x.gif", "x.jfif", "notes.txt"])
def test_a_class_without_pictures_shifts_no_labels(tmp_path, content):
    for label in "abc":
        (tmp_path / label).mkdir()
    for label in "ac":
        Image.new("L", (4, 4)).save(tmp_path / label / "x.png")
    if content is not None:
        (tmp_path / "b" / content).write_bytes(b"x")
    with pytest.raises(DataError, match=r"/b' holds no picture of its own"):
        DATASETS["image_folder"](path=str(tmp_path))


def test_what_would_be_read_in_part_is_refused(tmp_path):
    """Pillow keeps 8 of 16 bits of a colour, and the first of several pictures, and says nothing."""
    grey = np.linspace(0, 65535, 64).astype(">u2").reshape(8, 8)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).tobytes() for row in grey)
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    frames = [Image.new("RGB", (4, 4), (level, 9, 9)) for level in (9, 200)]
    for name in ("pages.tif", "moving.png", "moving.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    Image.fromarray((np.arange(64).reshape(8, 8) * 4).astype(np.int32)).save(tmp_path / "integers.tif")
    for name, message in (
        ("deep.png", "16 bits for each colour"), ("pages.tif", "holds 2 pictures"), ("moving.png", "holds 2 pictures"), ("moving.webp", "holds 2 pictures"),
        ("integers.tif", "whose level of white is unknown"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_may_be_zero(tmp_path, dtype):
    """TIFF says which level is white; Pillow heeds it, in writing and in reading, with 8 bits alone."""
    most = np.iinfo(dtype).max
    Image.fromarray(np.array([[0, most], [most // 4, 0]], dtype)).save(tmp_path / "x.tif", tiffinfo={262: 0})
    found = read(tmp_path / "x.tif")
    shares = found / 255 if found.dtype == np.uint8 else found
    np.testing.assert_allclose(shares[..., 0], [[0, 1], [0.25, 0]] if dtype is np.uint8 else [[1, 0], [0.75, 1]], atol=0.005)


def test_parts_of_a_data_set_are_no_classes(tmp_path):
    for place in ("train/a/x.png", "test/a/x.png", "test/b/x.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / place)
    for extra in (False, True):
        (tmp_path / "extra").mkdir(exist_ok=True)
        if extra:
            Image.new("L", (4, 4)).save(tmp_path / "extra" / "x.png")
        with pytest.raises(UsageError, match="holds train, test, which are parts of a data set"):
            DATASETS["image_folder"](path=str(tmp_path))
    for place in ("vehicles/car/x.png", "vehicles/train/x.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / place)
    assert DATASETS["image_folder"](path=str(tmp_path / "vehicles")).spec.num_classes == 2
    with pytest.raises(DataError, match="labels from 0 to 1 lie outside 0 .. -1"):
        DATASETS["image_folder"](path=str(tmp_path / "vehicles"), num_classes=0)
    assert DATASETS["image_folder"](path=str(tmp_path / "test")).spec.num_classes == 2
    Image.new("L", (4, 4)).save(tmp_path / "test" / "x.png")
    with pytest.raises(DataError, match="is not in the folder of a class"):
        DATASETS["image_folder"](path=str(tmp_path / "test"))


def test_what_nobody_asks_for_is_not_read(tmp_path):
    for at in range(3):
        (tmp_path / "ab"[at % 2]).mkdir(exist_ok=True)
        Image.new("L", (4, 4), at * 100).save(tmp_path / "ab"[at % 2] / f"{at}.png")
    (tmp_path / "b" / "9.png").write_bytes(b"damaged")
    data = DATASETS["image_folder"](path=str(tmp_path), count=2, offset=1)
    assert data.labels.tolist() == [0, 1] and data.spec.num_classes == 2
    np.testing.assert_allclose(data.pixels[:, 0, 0, 0] * 255, [200, 100])
    with pytest.raises(DataError, match="not a readable image"):
        DATASETS["image_folder"](path=str(tmp_path), count=2, offset=1, normalisation="channel")


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from([np.int8, np.int16, np.uint16, np.int64, np.float16, np.float32, np.float64]), low=st.floats(-2, 2), high=st.floats(-2, 2))
def test_pixels_are_bytes_or_shares(dtype, low, high):
    from selgrad.data.dataset import make

    pixels = np.array([low, high]).astype(dtype).reshape(2, 1, 1, 1)
    sound = np.issubdtype(dtype, np.floating) and pixels.min() >= 0 and pixels.max() <= 1
    build = lambda: make(pixels, np.array([0, 1]), num_classes=2, count=None, offset=0, normalisation="none", source="it")
    if sound:
        np.testing.assert_array_equal(build().pixels, pixels.astype(np.float32))
    else:
        with pytest.raises(DataError, match="known range|outside"):
            build()


def tokenizer_files(folder, words, **config):
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return from_files(str(folder))


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_a_tokenizer_is_what_its_files_say(tmp_path):
    words = [*SPECIAL, "Berlin", "berlin", "café", "cafe", "is"]
    cased = tokenizer_files(tmp_path, words, do_lower_case=False)
    assert cased.encode("Berlin is café") == [2, 5, 9, 7, 3]
    assert tokenizer_files(tmp_path, words, do_lower_case=True).encode("Berlin is café") == [2, 6, 9, 8, 3]
    assert tokenizer_files(tmp_path, words, do_lower_case=True, strip_accents=False).encode("café") == [2, 7, 3]
    with pytest.raises(DataError, match="do_lower_case='no'"):
        tokenizer_files(tmp_path, words, do_lower_case="no")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="not readable JSON"):
        from_files(str(tmp_path))


def test_every_file_of_a_tokenizer_counts_as_in_transformers(tmp_path):
    """Added tokens, a byte-order mark, a configuration that contradicts tokenizer.json, a space before the first word."""
    from tokenizers.implementations import BertWordPieceTokenizer
    from transformers import BertTokenizer, BertTokenizerFast, GPT2Tokenizer

    words = [*SPECIAL, "Berlin", "berlin", "café", "cafe", "is"]
    for name in ("added", "mark", "conflict", "gpt2"):
        (tmp_path / name).mkdir()
    (tmp_path / "added" / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "added" / "added_tokens.json").write_text(json.dumps({"[E1]": 10, "[E2]": 11}))
    (tmp_path / "mark" / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(words).encode())
    (tmp_path / "conflict" / "vocab.txt").write_text("\n".join(words) + "\n")
    BertWordPieceTokenizer(str(tmp_path / "conflict" / "vocab.txt"), lowercase=True)._tokenizer.save(str(tmp_path / "conflict" / "tokenizer.json"))
    (tmp_path / "conflict" / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "tokenizer_class": "BertTokenizer"}))
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġa": 5}
    (tmp_path / "gpt2" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "gpt2" / "merges.txt").write_text("#version: 0.2\na b\nĠ a\n")
    (tmp_path / "gpt2" / "added_tokens.json").write_text(json.dumps({"[PAD]": 6}))
    (tmp_path / "gpt2" / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True, "pad_token": "[PAD]"}))
    for name, theirs, text in (
        ("added", BertTokenizer, "[E1] is Berlin"), ("conflict", BertTokenizerFast, "Berlin is café"), ("gpt2", GPT2Tokenizer, "a ab"),
    ):  # fmt: skip
        ours, reference = from_files(str(tmp_path / name)), theirs.from_pretrained(str(tmp_path / name))
        assert ours.encode(text) == reference(text)["input_ids"] and ours.size == len(reference), name
        assert ours.pad_id == reference.pad_token_id
    assert from_files(str(tmp_path / "mark")).special_ids == (0, 1, 2, 3, 4)
    (tmp_path / "added" / "added_tokens.json").write_text(json.dumps({"[E1]": 25}))
    with pytest.raises(DataError, match=r"gives '\[E1\]' the id 25 and it would have 10"):
        from_files(str(tmp_path / "added"))


@pytest.mark.parametrize("facts", [None, {"tokenizer_class": "RobertaTokenizer"}, {"add_prefix_space": True, "cls_token": "<s>"}])
def test_a_byte_level_vocabulary_with_frames_is_robertas(tmp_path, facts):
    from transformers import RobertaTokenizer

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6, "Ġ": 7, "Ġa": 8, "<mask>": 9}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ a\n")
    if facts is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(facts))
    ours, theirs = from_files(str(tmp_path)), RobertaTokenizer.from_pretrained(str(tmp_path))
    for text in ("a ab", "ab a</s>a", ""):
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert (ours.start_id, ours.end_id, ours.pad_id, ours.size) == (theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id, len(theirs))
    assert ours.decode(ours.encode("a ab")) == theirs.decode(theirs("a ab")["input_ids"], skip_special_tokens=True).strip()
    assert set(ours.special_ids) == set(theirs.all_special_ids)


def test_an_id_is_a_row_of_an_embedding(tmp_path):
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 4_000_000_000}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    with pytest.raises(DataError, match="ids go up to 4,000,000,000"):
        from_files(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_another_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "text").write_bytes("hallo\nwelt\n".encode(encoding))
    with pytest.raises(DataError, match=r"save it in utf-8"):
        read_lines(tmp_path / "text")


@pytest.mark.parametrize("labels", [[0.5, 1.9], [True, False], ["0", "1"]])
def test_labels_of_sentences_are_integers(labels):
    from selgrad.data.own import from_sentences

    # As outside the tests, where annotations are not enforced.
    with pytest.raises(DataError, match="are not integers"):
        inspect.unwrap(from_sentences)(["a b", "c d"], labels=labels)


def test_special_tokens_have_the_names_that_files_give_them(tmp_path):
    words = ["<nil>", "<what>", "<go>", "<stop>", "<hole>", "a", "b"]
    names = {"pad_token": "<nil>", "unk_token": {"content": "<what>"}, "cls_token": "<go>", "sep_token": "<stop>", "mask_token": "<hole>"}
    found = tokenizer_files(tmp_path, words, **names)
    assert (found.pad_id, found.start_id, found.end_id, found.special_ids) == (0, 2, 3, (0, 1, 2, 3, 4))
    assert found.encode("a q") == [2, 5, 1, 3] and found.decode([2, 5, 1, 3, 0]) == "a"


def test_ids_may_have_holes(tmp_path):
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "film": 21, "fine": 4}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}))
    found = from_files(str(tmp_path))
    assert found.size == 22 and found.encode("fine film") == [4, 21] and found.start_id is None and found.end_id is None


def test_an_unknown_word_without_a_token_for_it_is_one_line(tmp_path):
    with pytest.raises(DataError, match="could not be read|cannot encode") as caught:
        tokenizer_files(tmp_path, ["[PAD]", "[CLS]", "[SEP]", "a"]).encode("zebra")
    assert "\n" not in str(caught.value)


class Pointer:
    """What NumPy's own reader of pickles would follow: an array of objects over bytes that somebody chose."""

    def __reduce__(self):
        return np.ndarray, ((1,), np.dtype("O"), b"ABCDEFG\x08")


@pytest.mark.parametrize(
    "raw",
    [
        pickle.dumps({b"data": Pointer(), b"labels": [0]}, 2),
        pickle.dumps({b"data": np.zeros((1, 3072), object), b"labels": [0]}, 2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.float32), b"labels": [0]}, 2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0.5]}, 2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [2**70]}, 2),
        b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        b"(" * 100_000 + b".",
    ],
)
def test_a_pickle_is_read_by_nothing_that_could_crash(tmp_path, raw):
    (tmp_path / "test_batch").write_bytes(raw)
    with pytest.raises(DataError, match="is not a CIFAR python batch"):
        DATASETS["cifar10"](path=str(tmp_path))


@pytest.mark.parametrize("protocol", range(5))
def test_a_sound_batch_is_read_whatever_was_read_before(tmp_path, protocol):
    """A pickle that gives a name a state would change what later ones are read with."""
    spoiling = b"\x80\x02cnumpy\ndtype\n(N}X\x05\x00\x00\x00_makeX\x01\x00\x00\x00xstb."
    (tmp_path / "test_batch").write_bytes(spoiling)
    with pytest.raises(DataError, match="a state to something else than an array"):
        DATASETS["cifar10"](path=str(tmp_path))
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": np.full((2, 3072), 7, np.uint8), b"labels": [0, 3]}, protocol))
    batch = DATASETS["cifar10"](path=str(tmp_path))
    assert batch.labels.tolist() == [0, 3] and len(batch) == 2


def refused(imports, call, argument):
    """The message of the DataError with which a call in a fresh process ends, and by how many kilobytes its memory grew."""
    program = (
        f"import resource, sys; {imports}; from selgrad.errors import DataError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try: {call}\n"
        "except DataError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    message, kilobytes = subprocess.run([sys.executable, "-c", program, str(argument)], capture_output=True, text=True).stdout.splitlines()
    return message, int(kilobytes)


@pytest.mark.parametrize("code", [code for code in range(256) if bytes([code]) in {pickle.BYTEARRAY8, pickle.BINBYTES8, pickle.BINUNICODE8, pickle.LONG4}])
def test_a_pickle_allocates_nothing_on_a_length_that_it_says(tmp_path, code):
    size = struct.pack("<i", 2**31 - 1) if bytes([code]) == pickle.LONG4 else struct.pack("<Q", 3 * 2**30)
    (tmp_path / "test_batch").write_bytes(b"\x80\x05" + bytes([code]) + size + b"x.")
    message, kilobytes = refused("from selgrad.data import DATASETS", "DATASETS['cifar10'](path=sys.argv[1])", tmp_path)
    assert "is not a CIFAR python batch" in message and kilobytes < 50_000


def test_an_unpacked_file_is_as_large_as_its_header_says(tmp_path):
    file = tmp_path / "bomb"
    file.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 1, 28, 28) + bytes(200_000_000)))
    message, kilobytes = refused("from pathlib import Path; from selgrad.data.idx import read_idx", "read_idx(Path(sys.argv[1]), 3)", file)
    assert "holds more where its header says" in message and kilobytes < 50_000
    file.write_bytes(struct.pack(">4I", 0x803, 2**31, 2**20, 28))
    with pytest.raises(DataError, match="announces"):
        read_idx(file, 3)


def damaged(raw, draw):
    """A few changes of a file: bytes, a cut, a repetition."""
    out = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(out) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "double", "number"]))
        if kind == "flip" and out:
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del out[at:]
        elif kind == "double":
            out[at:at] = out[at : at + 64]
        else:
            out[at : at + 4] = struct.pack("<I", draw(st.integers(0, 2**32 - 1)))
    return bytes(out)


def seeds():
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "png")
    bert = "\n".join([*SPECIAL, *string.ascii_lowercase]).encode()
    return {
        "mnist": ("t10k-images-idx3-ubyte", struct.pack(">4I", 0x803, 2, 4, 4) + bytes(32)),
        "cifar10": ("test_batch", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, 2)),
        "image_folder": ("a/x.png", image.getvalue()),
        "sst2": ("train.tsv", b"sentence\tlabel\ngood film\t1\nbad film\t0\n"),
        "text_file": ("text", "Grüße\nmir geht es gut\n".encode()),
        "tokenizer": ("vocab.txt", bert),
    }


@pytest.mark.parametrize("name", seeds())
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_end_in_one_line(tmp_path_factory, name, data):
    place, raw = seeds()[name]
    folder = tmp_path_factory.mktemp("damaged")
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_bytes(damaged(raw, data.draw))
    if name == "mnist":
        (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + bytes(2))
    try:
        if name == "tokenizer":
            from_files(str(folder)).encode("a zebra")
        else:
            DATASETS[name](path=str(folder / place if name == "text_file" else folder))
    except (DataError, UsageError) as error:
        assert "\n" not in str(error)
