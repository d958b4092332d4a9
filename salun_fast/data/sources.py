"""Data sets by name or folder. Nothing is downloaded unless asked."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_fast.data.images import ImageData, ImageSet

DATASETS = ("digits", "fashion-mnist", "cifar10", "cifar100", "svhn")

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DIGITS_TEST_SHARE = 0.2
DIGITS_SPLIT_SEED = 0


def load_images(
    name: str | os.PathLike[str] = "digits",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    channels: int | None = None,
    image_size: int = 64,
) -> ImageData:
    """A data set as in-memory uint8 tensors with its per-channel mean and std.

    name: "digits" (scikit-learn's 1,797 handwritten digits, embedded), "fashion-mnist", "cifar10",
        "cifar100", "svhn", or a folder with ``train/CLASS/*.png`` and ``test/`` (or ``val/``).
    root: folder in which torchvision keeps its files (default: ``./data``; Fashion-MNIST is also
        found where the Debian package dataset-fashion-mnist puts it).
    channels: 3 repeats grey images, for models that take colour.
    image_size: side in pixels to which images of a folder are resized and cropped.
    Raises FileNotFoundError saying where was looked and what to do.
    """
    key = str(name).lower()
    if key in DATASETS:
        data = _NAMED[key](Path(root) if root is not None else Path("data"), download)
    elif Path(name).is_dir():
        data = _image_folder(Path(name), image_size)
    else:
        raise FileNotFoundError(
            f"data {str(name)!r} is neither a known name ({', '.join(DATASETS)}) nor a folder"
        )
    return data if channels is None else _with_channels(data, channels)


def _with_channels(data: ImageData, channels: int) -> ImageData:
    if data.channels == channels:
        return data
    if data.channels != 1 or channels != 3:
        raise ValueError(
            f"channels must be {data.channels} for {data.name}, or 3 for grey images, "
            f"found {channels}"
        )

    def repeated(part: ImageSet) -> ImageSet:
        mean, std = part.mean, part.std
        return replace(
            part,
            images=part.images.repeat(1, 3, 1, 1),
            mean=None if mean is None else mean * 3,
            std=None if std is None else std * 3,
        )

    return replace(data, train=repeated(data.train), test=repeated(data.test))


def _data(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: Any
) -> ImageData:
    """Both parts normalised by the training part's statistics."""
    mean, std = _statistics(train[0])
    return ImageData(
        name,
        ImageSet(train[0], train[1].long(), mean, std),
        ImageSet(test[0], test[1].long(), mean, std),
        tuple(str(c) for c in classes),
    )


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel in units of 0..1, from exact histograms of the uint8 values."""
    values = torch.arange(256, dtype=torch.float64) / 255.0
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share = counts / counts.sum()
        mean = float((share * values).sum())
        variance = float((share * (values - mean) ** 2).sum())
        means.append(mean)
        deviations.append(max(variance, 1e-12) ** 0.5)
    return tuple(means), tuple(deviations)


def _digits(root: Path, download: bool) -> ImageData:
    """1,797 digits of 8 x 8 pixels, values 0..16; a fixed, stratified 80/20 split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits data come with scikit-learn: pip install 'salun-fast[eval]'"
        ) from error
    bunch = load_digits()
    images = (torch.from_numpy(bunch.images) * (255.0 / 16.0)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    generator = torch.Generator().manual_seed(DIGITS_SPLIT_SEED)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        members = (labels == digit).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        is_test[members[order[: int(len(members) * DIGITS_TEST_SHARE)]]] = True
    train, test = (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
    return _data("digits", train, test, range(10))


def _fashion_mnist(root: Path, download: bool) -> ImageData:
    """60,000 + 10,000 grey images of 28 x 28 pixels, from idx files."""
    for folder in (root / "FashionMNIST" / "raw", root, DEBIAN_FASHION_MNIST):
        if _idx_file(folder, "train-images-idx3-ubyte") is not None:
            parts = [
                (
                    _read_idx(folder, f"{part}-images-idx3-ubyte")[:, None],
                    _read_idx(folder, f"{part}-labels-idx1-ubyte"),
                )
                for part in ("train", "t10k")
            ]
            return _data("fashion-mnist", parts[0], parts[1], FASHION_CLASSES)
    if download:
        _torchvision("fashion-mnist").FashionMNIST(root, train=True, download=True)
        return _fashion_mnist(root, download=False)
    raise FileNotFoundError(
        f"fashion-mnist not found in {root / 'FashionMNIST' / 'raw'}, {root} and "
        f"{DEBIAN_FASHION_MNIST}; install the Debian package dataset-fashion-mnist, point root= "
        "at a torchvision folder, or allow download=True"
    )


def _idx_file(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> Tensor:
    """The uint8 tensor of one idx file (big-endian header: 0, 0, 8, rank, sizes)."""
    path = _idx_file(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder / name}[.gz] is missing beside the other idx files")
    blob = path.read_bytes()
    if path.suffix == ".gz":
        try:
            blob = gzip.decompress(blob)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or altered ({error}); fetch it again") from error
    rank = blob[3] if len(blob) > 3 else 0
    header = 4 + 4 * rank
    if len(blob) < header or blob[:3] != b"\0\0\x08" or rank == 0:
        raise ValueError(f"{path} is not an idx file of unsigned bytes; fetch it again")
    shape = struct.unpack(f">{rank}I", blob[4:header])
    values = torch.frombuffer(bytearray(blob[header:]), dtype=torch.uint8)
    expected = int(torch.tensor(shape).prod())
    if values.numel() != expected:
        raise ValueError(
            f"{path} is truncated: its header promises {expected} bytes, found {values.numel()}"
        )
    return values.view(*shape)


def _torchvision(name: str) -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise ImportError(
            f"{name} is read by torchvision: pip install 'salun-fast[eval]'"
        ) from error
    return torchvision.datasets


def _cifar(name: str, class_name: str) -> Callable[[Path, bool], ImageData]:
    def load(root: Path, download: bool) -> ImageData:
        dataset = getattr(_torchvision(name), class_name)
        parts = [
            _found(name, root, partial(dataset, root, train=train, download=download))
            for train in (True, False)
        ]
        tensors = [
            (torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets))
            for p in parts
        ]
        return _data(name, tensors[0], tensors[1], parts[0].classes)

    return load


def _svhn(root: Path, download: bool) -> ImageData:
    dataset = _torchvision("svhn").SVHN
    parts = [
        _found("svhn", root, partial(dataset, root, split=split, download=download))
        for split in ("train", "test")
    ]
    tensors = [(torch.from_numpy(p.data), torch.from_numpy(p.labels)) for p in parts]
    return _data("svhn", tensors[0], tensors[1], range(10))


def _found(name: str, root: Path, load: Callable[[], Any]) -> Any:
    """Torchvision's "not found or corrupted" as an error that says what to do."""
    try:
        return load()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{name} not found (or altered) under {root}; point root= at the folder that holds "
            f"torchvision's files, or allow download=True ({error})"
        ) from error


def _image_folder(folder: Path, image_size: int) -> ImageData:
    datasets = _torchvision(str(folder))
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.Resize(image_size),
            transforms.CenterCrop(image_size),
            transforms.PILToTensor(),
        ]
    )
    test_folder = next((folder / n for n in ("test", "val") if (folder / n).is_dir()), None)
    if not (folder / "train").is_dir() or test_folder is None:
        raise FileNotFoundError(
            f"{folder} must hold train/CLASS/*.png and test/CLASS/*.png (or val/), found "
            f"{sorted(p.name for p in folder.iterdir())[:8]}"
        )
    parts = [datasets.ImageFolder(p, transform) for p in (folder / "train", test_folder)]
    if parts[0].classes != parts[1].classes:
        raise ValueError(
            f"{folder}: train and {test_folder.name} must have the same class folders, found "
            f"{parts[0].classes[:8]} and {parts[1].classes[:8]}"
        )
    tensors = [
        (torch.stack([image for image, _ in part]), torch.tensor(part.targets)) for part in parts
    ]
    return _data(folder.name, tensors[0], tensors[1], parts[0].classes)


_NAMED: dict[str, Callable[[Path, bool], ImageData]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar("cifar10", "CIFAR10"),
    "cifar100": _cifar("cifar100", "CIFAR100"),
    "svhn": _svhn,
}
