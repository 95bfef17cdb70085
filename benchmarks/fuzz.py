"""What loaders and frames make of bytes that nobody foresaw.

Command: uv run --extra federation python benchmarks/fuzz.py [--count 20000] [--targets idx png ...]   (a quarter of an hour on 2 cores; Linux)
Setting: each target begins with a few sound inputs, which are mutated: bits, bytes, numbers of interest, cuts, pieces repeated, moved, removed or taken from another input.
  Frames whose checksum would refuse nearly all of that get a right one first, so that what is behind it is tried. Each target runs in a process of its own.
Counted: `read`, taken as it is; `refused`, one line of selgrad's own; `traceback`, any other error; `hang`, more than ten seconds; `crash`, the process ended.
Expected: traceback, hang and crash 0.
Leaves: benchmarks/results/fuzz.json.
"""

import argparse
import collections
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import struct
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np

from selgrad.errors import SelgradError

INTERESTING = [0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def mutated(seeds: list[bytes], draw: random.Random) -> bytes:
    raw = bytearray(draw.choice(seeds))
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        at, span, how = draw.randrange(len(raw) + 1), draw.choice([1, 2, 4, 8, 30]), draw.randrange(8)
        if how == 0 and raw:
            raw[at % len(raw)] ^= 1 << draw.randrange(8)
        elif how == 1 and raw:
            raw[at % len(raw)] = draw.randrange(256)
        elif how == 2:
            size = draw.choice([1, 2, 4, 8])
            raw[at : at + size] = (draw.choice(INTERESTING) % 256**size).to_bytes(size, draw.choice(["little", "big"]))
        elif how == 3:
            del raw[at:]
        elif how == 4:
            del raw[at : at + span]
        elif how == 5:
            raw[at:at] = raw[at : at + span] * draw.choice([1, 2, 50])
        elif how == 6:
            other = draw.choice(seeds)
            start = draw.randrange(len(other) + 1)
            raw[at : at + span] = other[start : start + span]
        else:
            raw[at:at] = bytes(draw.randrange(256) for _ in range(span))
    return bytes(raw)


def on_file(name: str, read):
    """A target that reads a file of this name."""

    def target(raw: bytes, folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        read(path)

    return target


def _idx() -> tuple:
    from selgrad.data.idx import read_idx

    plain = struct.pack(">HBBIII", 0, 8, 3, 2, 3, 3) + bytes(18)
    return [plain], on_file("images-idx3-ubyte", lambda path: read_idx(path, 3))


def _idx_packed() -> tuple:
    from selgrad.data.idx import read_idx

    plain = struct.pack(">HBBIII", 0, 8, 3, 2, 3, 3) + bytes(range(18))
    return [gzip.compress(plain, mtime=0)], on_file("images-idx3-ubyte.gz", lambda path: read_idx(path, 3))


def _cifar_python() -> tuple:
    from selgrad.data.cifar import _read_python

    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2], b"batch_label": b"one", b"filenames": [b"a", b"b"]}
    return [pickle.dumps(batch, protocol) for protocol in (0, 2, 4)], on_file("data_batch_1", lambda path: _read_python(path, b"labels"))


def _cifar_binary() -> tuple:
    from selgrad.data.cifar import _read_binary

    return [bytes(2 * 3073)], on_file("data_batch_1.bin", lambda path: _read_binary(path, 1))


def _pictures(kind: str):
    def make() -> tuple:
        from PIL import Image

        from selgrad.data.pictures import read

        seeds = []
        for mode in ("RGB", "L") if kind == "jpeg" else ("RGB", "L", "P"):
            stream = io.BytesIO()
            Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(mode).save(stream, kind)
            seeds.append(stream.getvalue())
        return seeds, on_file(f"picture.{kind}", read)

    return make


def _text() -> tuple:
    from selgrad.data.text_file import text_file

    seeds = ["one sentence here\nand another one\n".encode(code) for code in ("utf-8", "utf-16", "latin-1")]
    return [*seeds, "\ufeffthree\tlabels\n".encode()], on_file("corpus.txt", lambda path: text_file(path=str(path)))


def _corpus(name: str, file: str, seeds: list[bytes]):
    def make() -> tuple:
        from selgrad.data import DATASETS

        return seeds, on_file(f"corpus/{file}", lambda path: DATASETS[name](path=str(path.parent)))

    return make


def _vocabulary() -> tuple:
    from selgrad.data.tokenizer import from_files

    words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "is"]).encode() + b"\n"
    return [words, b"\xef\xbb\xbf" + words], on_file("tokenizer/vocab.txt", lambda path: from_files(str(path.parent)).encode("a is ab"))


def _msgpack() -> tuple:
    from flax import serialization

    from selgrad.weights import read

    seed = serialization.msgpack_serialize({"params": {"w": np.ones((2, 3), np.float32), "b": np.arange(4)}})
    return [seed], on_file("weights.msgpack", read)


def _model_config() -> tuple:
    from selgrad.base import TextSpec
    from selgrad.models import MODELS

    spec = TextSpec((8,), 2, 20, 0, 1, 2, (0, 1, 2))
    seed = {
        "model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 16, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    }  # fmt: skip
    return [json.dumps(seed).encode()], on_file("model/config.json", lambda path: MODELS["bert"](spec, pretrained=str(path.parent)))


def _tokenizer() -> tuple:
    import tokenizers

    from selgrad.data.tokenizer import from_files

    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    return [library.to_str().encode()], on_file("tokenizer/tokenizer.json", lambda path: from_files(str(path.parent)))


def _safetensors() -> tuple:
    from safetensors.numpy import save

    from selgrad.weights import read

    seed = save({"a.weight": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.float16)})
    return [seed], on_file("model.safetensors", read)


def _config() -> tuple:
    from selgrad.config import load

    seeds = [
        b"dataset: {name: digits, count: 2}\nmodel: {name: mlp, width: 8}\nmetric: [magnitude, random]\nratio: [0, 0.5]\nattack: {name: idlg, num_steps: 2}\n",
        b"name: x\ndataset: sentences\nmodel: bert\nupdate: {name: fedavg, num_steps: 2}\nseeds: 3\nprotection: {name: dp_gaussian, noise: 1e-3}\nencryption: none\n",
    ]
    return seeds, on_file("sweep.yaml", load)


def _federation() -> tuple:
    from selgrad.federation.config import load

    seed = b"dataset: {name: digits, count: 200}\nmodel: {name: mlp, width: 8}\nclients: {count: 3, alpha: 0.5}\nrounds: 2\nagreement: vote\nratio: 0.2\nencryption: {profile: exact}\n"
    return [seed], on_file("run.yaml", load)


def _entry() -> tuple:
    from selgrad.cli.options import entry

    seeds = [b"lenet", b"mlp:width=8,activation=sigmoid", b"image_folder:path='a b, c',size=8", b"dp_gaussian:noise=1e-3", b"x:y=[1,2],z={a: 1}"]
    return seeds, lambda raw, _: entry("model", raw.decode("utf-8", "surrogateescape"))


def _index_list() -> tuple:
    from selgrad.encryption import decode_indices, encode_indices

    masks = [np.arange(500) % step == 0 for step in (2, 7, 100)]
    return [encode_indices(mask) for mask in masks], lambda raw, _: decode_indices(raw, 500)


def _message() -> tuple:
    from selgrad.federation.enrolment import unpack

    from selgrad.federation.enrolment import pack  # isort: skip

    seeds = [pack({"kind": "train", "round": 1, "weights": bytes(40), "uploads": [b"one", b"two"]}), pack({"a": 1})]

    def read(raw: bytes, _: Path) -> None:
        try:
            unpack(raw)
        except ValueError as error:
            raise SelgradError(str(error)) from None

    return seeds, read


def _sealed() -> list[bytes]:
    from selgrad import encryption

    holder = encryption.KeyHolder()
    _KEPT["holder"] = holder
    return [encryption.Client(holder.client_key()).encrypt(np.linspace(-0.5, 0.5, 40), "mask")]


_KEPT: dict = {}


def _whole(raw: bytes) -> bytes:
    """With the checksum that a frame ends in."""
    return raw[:-32] + hashlib.sha256(raw[:-32]).digest()


def _frame() -> tuple:
    from selgrad.encryption.wire import Reader

    return _sealed(), lambda raw, _: Reader(_whole(raw))


def _ciphertext() -> tuple:
    """Behind the checksum: what would reach OpenFHE."""
    from selgrad import encryption

    seeds, scheme = _sealed(), encryption.CKKS("exact")

    def read(raw: bytes, _: Path) -> None:
        reader = encryption.Reader(_whole(raw))
        scheme.check(reader)
        _KEPT["holder"].decrypt(scheme.add([reader], raw=scheme.layout is not None).to_bytes(), reader.header.mask_hash)

    return seeds, read


def _key() -> tuple:
    from selgrad import encryption

    holder = encryption.KeyHolder()
    return [holder.client_key()], lambda raw, _: encryption.Client(raw)


def _share() -> tuple:
    from selgrad import encryption

    first = encryption.Party()
    second = encryption.Party(first.client_key())
    upload = encryption.Client(second.client_key()).encrypt(np.zeros(40), "mask")
    total = encryption.Aggregator("threshold").add([upload, encryption.Client(second.client_key()).encrypt(np.zeros(40), "mask")])
    shares, scheme = [party.share(total, "mask") for party in (first, second)], encryption.CKKS("threshold")

    def read(raw: bytes, _: Path) -> None:
        scheme.combine([encryption.Ciphertexts.from_bytes(_whole(raw)), encryption.Ciphertexts.from_bytes(shares[1])], "mask")

    return [shares[0]], read


def _enrolment() -> tuple:
    from selgrad.federation.enrolment import FILE, Enrolment, enrol
    from selgrad.federation.config import parse  # isort: skip
    from selgrad.files import checksum

    with tempfile.TemporaryDirectory() as folder:
        enrol(parse({"dataset": {"name": "digits", "count": 60}, "model": {"name": "mlp", "width": 4}, "protection": "none"}))[0].save(folder)
        seed = (Path(folder) / FILE).read_bytes()

    def read(path: Path) -> None:
        path.chmod(0o600)
        try:
            given = json.loads(path.read_bytes())
            given.pop("checksum", None)
            path.write_text(json.dumps({**given, "checksum": checksum(given)}))
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
        Enrolment.load(path.parent)

    return [seed], on_file(f"seat/{FILE}", read)


def _records() -> tuple:
    import pandas as pd

    from selgrad.report.record_files import RecordFiles, write_block

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "0.parquet"
        write_block(file, pd.DataFrame({"cell_id": ["a", "b"], "psnr": [1.0, 2.0], "metric": ["m", "m"], "num_slots": pd.array([1, None], "Int64")}), "id")
        seed = file.read_bytes()
    return [seed], on_file(f"records/{'0' * 16}.parquet", lambda path: RecordFiles(path.parents[1]).read())


TARGETS = {
    "idx": _idx, "idx.gz": _idx_packed, "CIFAR, Python": _cifar_python, "CIFAR, binary": _cifar_binary, "png": _pictures("png"), "jpeg": _pictures("jpeg"),
    "gif": _pictures("gif"), "tiff": _pictures("tiff"), "bmp": _pictures("bmp"), "webp": _pictures("webp"), "text file": _text,
    "SST-2": _corpus("sst2", "train.tsv", [b"sentence\tlabel\ngood film\t1\nbad film\t0\n"]),
    "CoLA": _corpus("cola", "in_domain_train.tsv", [b"g\t1\t\ta cat sat\ng\t0\t*\tcat a sat\n"]),
    "tokenizer.json": _tokenizer, "vocab.txt": _vocabulary, "safetensors": _safetensors, "msgpack": _msgpack, "config.json": _model_config, "sweep.yaml": _config,
    "federation.yaml": _federation, "NAME:key=value": _entry, "index list": _index_list, "message": _message, "upload": _frame, "ciphertext": _ciphertext,
    "key": _key, "share": _share, "enrolment": _enrolment, "records": _records,
}  # fmt: skip


class Hang(BaseException):
    pass


def _alarm(*_: object) -> None:
    raise Hang


def work(name: str, start: int, count: int, at: "multiprocessing.Value", counts: "multiprocessing.Queue") -> None:
    """Tries inputs from a number on; which one is on is seen from outside, where this process ends."""
    signal.signal(signal.SIGALRM, _alarm)
    warnings.simplefilter("ignore")
    seeds, read = TARGETS[name]()
    found: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        read(seeds[0], Path(folder))  # a target that refuses everything would prove nothing
        for number in range(start, count):
            at.value = number
            raw = mutated(seeds, random.Random(f"{name} {number}"))
            signal.alarm(10)
            try:
                read(raw, Path(folder))
                found["read"] += 1
            except SelgradError as error:
                found["refused" if str(error) else "traceback"] += 1
            except Hang:
                found["hang"] += 1
                print(name, number, "hangs", raw[:60], flush=True)
            except BaseException:
                found["traceback"] += 1
                if found["traceback"] <= 3:
                    print(name, number, traceback.format_exc()[-700:], raw[:60], flush=True)
            finally:
                signal.alarm(0)
            if number % 500 == 499 or number == count - 1:
                counts.put(dict(found))
                found.clear()
    at.value = count


def measured(name: str, count: int) -> dict:
    context = multiprocessing.get_context("spawn")
    at, counts = context.Value("q", -1), context.Queue()
    total: collections.Counter = collections.Counter({"read": 0, "refused": 0, "traceback": 0, "hang": 0, "crash": 0})
    start = 0
    while start < count:
        process = context.Process(target=work, args=(name, start, count, at, counts))
        process.start()
        while process.is_alive() or not counts.empty():
            try:
                total.update(counts.get(timeout=0.5))
            except Exception:  # nothing yet
                continue
        process.join()
        if at.value < 0:
            raise SystemExit(f"{name}: its sound inputs could not be made")
        if at.value < count:
            total["crash"] += 1
            print(name, at.value, "ends the process:", process.exitcode, flush=True)
        start = at.value + 1
    return {"target": name, "inputs": count, **total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000, help="inputs of each target")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    arguments = parser.parse_args()
    file = Path(__file__).parent / "results" / "fuzz.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    for name in arguments.targets:
        row = measured(name, arguments.count)
        print(row, flush=True)
        kept = [old for old in kept if old["target"] != name] + [row]
        file.write_text(json.dumps({"hardware": {"device": "cpu", "cores": os.cpu_count()}, "rows": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
