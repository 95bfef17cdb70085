"""Loaders against real files in original formats, files of our own in the same formats, and every way for a file to be wrong."""

import gzip
import pickle
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from selgrad.data import DATASETS
from selgrad.errors import DataError, SelgradError, UsageError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("name", "folder", "shape", "split", "count"),
    [
        ("mnist", "mnist", (28, 28, 1), "test", 5000), ("mnist", "mnist", (28, 28, 1), "train", 10000),
        ("fashion_mnist", "fashion-mnist", (28, 28, 1), "test", 5000), ("fashion_mnist", "fashion-mnist", (28, 28, 1), "train", 6000),
        ("cifar10", "cifar10", (32, 32, 3), "test", 500), ("cifar10", "cifar10", (32, 32, 3), "train", 2000),
    ],
)  # fmt: skip
def test_real_files(data_folder, name, folder, shape, split, count):
    data = DATASETS[name](path=str(data_folder / folder), split=split)
    assert len(data) == count and data.spec.shape == shape and set(data.labels) <= set(range(10))
    assert data.pixels.min() >= 0 and data.pixels.max() == 1 and 0.1 < data.pixels.mean() < 0.6


def test_python_and_binary_batches_of_cifar_hold_the_same_images(data_folder):
    python, binary = (DATASETS["cifar10"](path=str(data_folder / "cifar10" / f"cifar-10-batches-{kind}")) for kind in ("py", "bin"))
    np.testing.assert_array_equal(python.pixels, binary.pixels)
    np.testing.assert_array_equal(python.labels, binary.labels)


def test_a_real_flat_folder_of_pictures(data_folder):
    data = DATASETS["image_folder"](path=str(data_folder / "cifar100"), label_pattern=r"_(\d+)[.]png$", num_classes=100)
    assert data.pixels.shape == (10, 32, 32, 3) and data.labels[0] == 49


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    images, labels = RANDOM.integers(0, 256, (7, 28, 28), np.uint8), np.arange(7, dtype=np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path, images


def test_idx_plain_and_gzipped(mnist):
    folder, images = mnist
    data = DATASETS["mnist"](path=str(folder), offset=2, count=3)
    np.testing.assert_allclose(data.pixels[..., 0] * 255, images[2:5], atol=1e-4)
    assert list(data.labels) == [2, 3, 4]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-10], "truncated, fetch it again"),
        (lambda raw: b"", "is not an idx file"),
        (lambda raw: b"PK\x03\x04" + raw, "is not an idx file"),
        (lambda raw: gzip.compress(raw)[:-20], "truncated or damaged gzip"),
        (lambda raw: b"\x1f\x8b" + raw, "truncated or damaged gzip"),
        (lambda raw: idx(np.zeros((3, 28, 28), np.uint8)), "do not belong together"),
    ],
)
def test_wrong_idx_files(mnist, damage, message):
    folder, _ = mnist
    file = folder / "t10k-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        DATASETS["mnist"](path=str(folder))
    assert "\n" not in str(caught.value)


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path):
    name = request.param
    pixels, labels = RANDOM.integers(0, 256, (5, 3072), np.uint8), RANDOM.integers(0, 10, 5).astype(np.uint8)
    stem, key = ("test_batch", b"labels") if name == "cifar10" else ("test", b"fine_labels")
    (tmp_path / "py").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "py" / stem).write_bytes(pickle.dumps({b"data": pixels, key: labels.tolist()}, protocol=2))
    columns = [labels[:, None]] if name == "cifar10" else [np.zeros_like(labels)[:, None], labels[:, None]]
    (tmp_path / "bin" / f"{stem}.bin").write_bytes(np.concatenate([*columns, pixels], axis=1).tobytes())
    return name, tmp_path, stem, labels


def test_cifar_formats_agree(cifar):
    name, folder, _, labels = cifar
    python, binary = (DATASETS[name](path=str(folder / kind)) for kind in ("py", "bin"))
    np.testing.assert_array_equal(python.pixels, binary.pixels)
    assert list(python.labels) == list(binary.labels) == list(labels)


def test_a_pickle_that_runs_code_is_refused(cifar, tmp_path):
    name, folder, stem, _ = cifar

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    (folder / "py" / stem).write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match="which no CIFAR batch does"):
        DATASETS[name](path=str(folder / "py"))
    assert not (tmp_path / "owned").exists()


def test_truncated_and_foreign_cifar(cifar):
    name, folder, stem, _ = cifar
    for kind, ending in (("py", ""), ("bin", ".bin")):
        file = folder / kind / f"{stem}{ending}"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(DataError, match="truncated"):
            DATASETS[name](path=str(folder / kind))
    (folder / "py" / stem).write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="is not a CIFAR python batch"):
        DATASETS[name](path=str(folder / "py"))


def test_image_folder(tmp_path):
    for label, colour in (("cat", 10), ("dog", 200)):
        (tmp_path / label).mkdir()
        for i in range(2):
            Image.fromarray(np.full((8, 8, 3), colour + i, np.uint8)).save(tmp_path / label / f"{i}.png")
    data = DATASETS["image_folder"](path=str(tmp_path))
    assert list(data.labels) == [0, 0, 1, 1] and data.spec.num_classes == 2
    np.testing.assert_allclose(data.pixels[:, 0, 0, 0] * 255, [10, 11, 200, 201], atol=1e-4)
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(tmp_path / "dog" / "odd.png")
    with pytest.raises(DataError, match="set size to resize"):
        DATASETS["image_folder"](path=str(tmp_path))
    assert DATASETS["image_folder"](path=str(tmp_path), size=4).spec.shape == (4, 4, 3)
    (tmp_path / "dog" / "odd.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match="is not a readable image"):
        DATASETS["image_folder"](path=str(tmp_path))
    with pytest.raises(UsageError, match="finds no number"):
        DATASETS["image_folder"](path=str(tmp_path), label_pattern="x")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "image_folder"])
def test_missing_and_empty_folders(name, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as caught:
            DATASETS[name](path=str(folder))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 1798}, {"offset": -1}, {"offset": 1797}])
def test_counts_that_do_not_fit(arguments):
    with pytest.raises(UsageError, match="there are 1797"):
        DATASETS["digits"](**arguments)


def test_photos_show_six_photographs_in_turns():
    data = DATASETS["photos"](count=12)
    assert list(data.labels) == list(range(6)) * 2 and len(np.unique(data.pixels.reshape(12, -1), axis=0)) == 12


def test_hub_sets_need_the_extra_and_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"selgrad\[hub\]"):
        DATASETS["huggingface"](repository="x/y")


def test_a_local_folder_in_the_hubs_layout(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for label in ("a", "b"):
        (tmp_path / "set" / "test" / label).mkdir(parents=True)
        Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "set" / "test" / label / "0.png")
    data = DATASETS["huggingface"](repository=str(tmp_path / "set"))
    assert data.pixels.shape == (2, 8, 8, 3) and list(data.labels) == [0, 1]
    with pytest.raises(UsageError, match="no column 'lable'"):
        DATASETS["huggingface"](repository=str(tmp_path / "set"), label_column="lable")
    with pytest.raises(SelgradError, match="could not be loaded"):
        DATASETS["huggingface"](repository=str(tmp_path / "nowhere"))
