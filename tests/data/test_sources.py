"""Data by name or folder; what is missing is said."""

import gzip
import struct

import pytest
import torch

from salun_fast.data import forget_split, load_images, sources

pytest.importorskip("sklearn")


def write_idx(path, array, *, cut=0):
    header = b"\0\0\x08" + bytes([array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape)
    blob = header + array.numpy().tobytes()
    blob = blob[: len(blob) - cut]
    path.write_bytes(gzip.compress(blob) if path.suffix == ".gz" else blob)


def write_fashion(folder, *, cut=0):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, suffix in (("train", 6, ".gz"), ("t10k", 3, "")):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images, cut=cut)
        labels = torch.arange(count, dtype=torch.uint8)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)


def test_digits_are_embedded_and_split_the_same_way_every_time():
    data, again = load_images(), load_images("digits")
    assert len(data.train) + len(data.test) == 1797
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert torch.equal(data.train.images, again.train.images)
    assert data.num_classes == 10
    assert data.test.labels.bincount().min() >= 34


def test_training_images_are_normalised_to_mean_0_and_std_1():
    images, _ = load_images().train.batch(torch.arange(1442))
    assert images.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert images.std().item() == pytest.approx(1.0, abs=1e-3)


def test_grey_images_become_three_channels_when_asked():
    data = load_images("digits", channels=3)
    assert data.channels == 3
    images, _ = data.train.batch(torch.arange(2))
    assert torch.equal(images[:, 0], images[:, 2])
    with pytest.raises(ValueError, match="channels must be 1 for digits, or 3"):
        load_images("digits", channels=2)


@pytest.mark.parametrize("inside", ["FashionMNIST/raw", "."])
def test_fashion_mnist_is_read_from_a_torchvision_folder_or_a_plain_one(tmp_path, inside):
    write_fashion(tmp_path / inside)
    data = load_images("fashion-mnist", root=tmp_path)
    assert data.train.images.shape == (6, 1, 28, 28)
    assert data.test.labels.tolist() == [0, 1, 2]
    assert data.classes[9] == "Ankle boot"


def test_fashion_mnist_missing_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist") as caught:
        load_images("fashion-mnist", root=tmp_path / "here")
    assert str(tmp_path / "here") in str(caught.value)


def test_truncated_and_foreign_idx_files_are_named(tmp_path):
    write_fashion(tmp_path, cut=5)
    with pytest.raises(ValueError, match="is truncated: its header promises"):
        load_images("fashion-mnist", root=tmp_path)
    whole = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    for damaged in (whole[:-9], whole[:5], b"\0" + whole[1:]):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match="is truncated or altered"):
            load_images("fashion-mnist", root=tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"hello there"))
    with pytest.raises(ValueError, match="not an idx file"):
        load_images("fashion-mnist", root=tmp_path)


@pytest.mark.skipif(not sources.DEBIAN_FASHION_MNIST.is_dir(), reason="package not installed")
def test_fashion_mnist_of_the_debian_package_is_whole(tmp_path):
    data = load_images("fashion-mnist", root=tmp_path)
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert data.train.labels.bincount().tolist() == [6000] * 10


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_torchvision_data_are_not_downloaded_unless_asked(tmp_path, name):
    pytest.importorskip("torchvision")
    with pytest.raises(FileNotFoundError, match="allow download=True"):
        load_images(name, root=tmp_path)
    assert not any(tmp_path.iterdir())


def test_image_folder_is_read_and_resized(tmp_path):
    pytest.importorskip("torchvision")
    from PIL import Image

    for part in ("train", "val"):
        for index, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (20 + index, 30), (index * 200, 10, 20)).save(folder / "a.png")
    data = load_images(tmp_path, image_size=16)
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape == (2, 3, 16, 16)
    assert data.test.labels.tolist() == [0, 1]
    (tmp_path / "val" / "dog" / "a.png").unlink()
    (tmp_path / "val" / "dog").rmdir()
    with pytest.raises(ValueError, match="same class folders"):
        load_images(tmp_path, image_size=16)


def test_unknown_names_and_wrong_folders_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a known name"):
        load_images("mnist-of-my-dreams")
    pytest.importorskip("torchvision")
    with pytest.raises(FileNotFoundError, match="must hold train/CLASS"):
        load_images(tmp_path)


def test_random_split_partitions_and_repeats():
    labels = torch.arange(1000) % 10
    forget, retain = forget_split(labels, fraction=0.1, seed=3)
    assert len(forget) == 100
    assert sorted(torch.cat([forget, retain]).tolist()) == list(range(1000))
    assert torch.equal(forget, forget_split(labels, fraction=0.1, seed=3)[0])
    assert not torch.equal(forget, forget_split(labels, fraction=0.1, seed=4)[0])


def test_class_split_takes_every_image_of_the_class():
    labels = torch.arange(100) % 10
    forget, retain = forget_split(labels, forget_class=3)
    assert (labels[forget] == 3).all()
    assert not (labels[retain] == 3).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of"),
        ({"fraction": 0.1, "forget_class": 1}, "exactly one of"),
        ({"fraction": 0.0}, "strictly between 0 and 1"),
        ({"fraction": 1.0}, "strictly between 0 and 1"),
        ({"fraction": 0.001}, "less than one image"),
        ({"forget_class": 11}, "forget_class 11 has no images"),
    ],
)
def test_impossible_splits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        forget_split(torch.arange(100) % 10, **arguments)
