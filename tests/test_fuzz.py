"""10,000 damaged files: refused in plain words or read as they were; no code in them is run."""

from __future__ import annotations

import itertools
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salun_fast import Saliency, SaliencyMask, UnlearningPatch, files, sealed
from salun_fast.evaluation.resources import PeakMemory
from salun_fast.files import FileFormatError
from salun_fast.methods import checkpoint
from salun_fast.weights import load_weights, save_weights
from tests import fuzz
from tests.hostile import Claim, Touch, resealed
from tests.told import told

SEED = 20_231_019
DAMAGED, SIGNED = 2_000, 500  # files of each kind: of masks, scores, patches, checkpoints 10,000
MEBIBYTES = 256  # that reading files of a kilobyte may cost

TENSORS = {
    "conv.weight": torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0)),
    "norm.weight": torch.linspace(-1, 1, 33),
    "empty": torch.zeros(0, 3),
}
IDENTITY = {"method": "salun", "seed": 3}


@dataclass(frozen=True)
class Kind:
    """write(path) makes a good file. read(path) gives all that is in it, as :func:`told` puts it.
    Without a checksum of its own (checked=False) a file may be read with other content. facts:
    a safetensors file's kind, to write it with others under a checksum that fits."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    name: str = "file.safetensors"
    checked: bool = True
    facts: str | None = None


def scores() -> Saliency:
    return Saliency.from_dict(TENSORS, score="abs_of_sum")


def patch() -> UnlearningPatch:
    changed = {name: tensor.clone() for name, tensor in TENSORS.items()}
    changed["conv.weight"][0] += 1
    changed["norm.weight"][16] = -0.0
    return UnlearningPatch.between(TENSORS, changed)


def write_checkpoint(path: Path) -> None:
    checkpoint.Checkpoint(
        identity=IDENTITY,
        model={"norm.weight": TENSORS["norm.weight"]},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"params": [0]}]},
        history=[{"epoch": 1, "loss": 0.5}],
        seconds={"train": 1.0},
        extra={"generator": torch.arange(9, dtype=torch.uint8)},
    ).save(path.parent)


def told_scores(path: Path) -> Any:
    found = Saliency.load(path)
    return told([found.score, {name: found._raw()[name] for name in found.names}])


def told_patch(path: Path) -> Any:
    found = UnlearningPatch.load(path)
    changes = {name: vars(change) for name, change in found.changes.items()}
    return told([found.numel, found.model_nbytes, changes])


def told_mask(mask: SaliencyMask) -> Any:
    return told([mask.score, mask.words, mask.shapes])


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def told_weights(path: Path) -> Any:
    loaded = model()
    load_weights(loaded, path)
    return told(loaded.state_dict())


KINDS = {
    "mask": Kind(
        lambda path: scores().mask(0.5).save(path),
        lambda path: told_mask(SaliencyMask.load(path)),
        facts="salun-fast mask",
    ),
    "saliency": Kind(lambda path: scores().save(path), told_scores, facts="salun-fast saliency"),
    "patch": Kind(lambda path: patch().save(path), told_patch, facts="salun-fast unlearning patch"),
    "checkpoint": Kind(
        write_checkpoint,
        lambda path: told(vars(checkpoint.load(path.parent, IDENTITY))),
        name=checkpoint.FILE_NAME,
    ),
    "reference mask": Kind(
        lambda path: scores().mask(0.5).export_reference(path),
        lambda path: told_mask(SaliencyMask.import_reference(path)),
        name="mask.pt",
    ),
    "weights": Kind(lambda path: save_weights(model(), path), told_weights),
    "foreign weights": Kind(
        lambda path: torch.save(model().state_dict(), path),
        told_weights,
        name="model.pt",
        checked=False,
    ),
}


@pytest.fixture
def folder(memory_folder: Path) -> Path:
    return memory_folder


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """No reader asks for the memory that a file claims to need."""
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about odd pickles
        yield
    assert peak.megabytes < before.megabytes + MEBIBYTES


def good_files(folder: Path) -> dict[str, bytes]:
    def written(kind: Kind) -> bytes:
        kind.write(folder / kind.name)
        return (folder / kind.name).read_bytes()

    return {name: written(kind) for name, kind in KINDS.items()}


def read(kind: Kind, path: Path, content: bytes, how: str) -> Any:
    """What the file holds; None where it is refused as documented. All else fails the test."""
    path.write_bytes(content)
    try:
        return kind.read(path)
    except ValueError as error:
        if path.name in str(error):
            return None
        raise AssertionError(f"{how}: the error names no file: {error}") from error
    except Exception as error:
        raise AssertionError(f"{how}: {error!r}") from error


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_or_holds_what_it_held(name, folder):
    kind, written, draw = KINDS[name], good_files(folder), random.Random(f"{SEED} {name}")
    path, whole = folder / kind.name, written[name]
    expected = read(kind, path, whole, "undamaged")
    assert expected is not None
    mutations = fuzz.BLIND + ((fuzz.header_edited,) if kind.facts else ())
    damaged = refused = 0
    while damaged < DAMAGED:
        mutation, other = draw.choice(mutations), written[draw.choice(list(KINDS))]
        content = mutation(whole, other, draw)
        if content == whole:
            continue
        damaged += 1
        found = read(kind, path, content, f"{mutation.__name__}, file {damaged}")
        refused += found is None
        if found is not None and kind.checked:
            assert found == expected, f"{mutation.__name__}, file {damaged}"
    assert refused > DAMAGED / 2


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.facts])
def test_a_header_that_lies_under_a_fitting_checksum_does_no_harm(name, folder):
    kind, draw, path = KINDS[name], random.Random(f"{SEED} {name}"), folder / "file.safetensors"
    kind.write(path)
    tensors, facts = files.load_tensors(path, kind=kind.facts, version=1)
    refused = 0
    for number in range(SIGNED):
        lies = facts | {
            key: fuzz.edited(facts[key], draw)
            for key in draw.sample(list(facts), draw.choice((1, 2)))
        }
        files.save_tensors(path, tensors, kind=kind.facts, version=1, facts=lies)
        found = read(kind, path, path.read_bytes(), f"file {number}: {lies}")
        refused += found is None
    assert refused > SIGNED / 4


def test_a_checkpoint_altered_under_a_fitting_checksum_does_no_harm(folder):
    kind, draw, path = KINDS["checkpoint"], random.Random(SEED), folder / checkpoint.FILE_NAME
    kind.write(path)
    whole = path.read_bytes()
    refused = 0
    for number in range(SIGNED):
        mutation = draw.choice(fuzz.BLIND)
        content = resealed(mutation(whole, whole, draw))
        refused += read(kind, path, content, f"{mutation.__name__}, file {number}") is None
    assert SIGNED / 4 < refused < SIGNED  # bytes between the archive's members mean nothing


# --- files made to harm ---------------------------------------------------------------------------


def strided(*, claimed: int) -> Tensor:
    """One stored element that says it is so many."""
    return torch.zeros(1).expand(claimed)


HARMFUL: dict[str, Callable[[Path], Any]] = {
    "code": lambda marker: Touch(marker),
    "code in a dict": lambda marker: {"format": checkpoint.FORMAT, "w": Touch(marker)},
    "code as a key": lambda marker: {Touch(marker): torch.ones(3)},
    "terabytes": lambda marker: Claim(fuzz.HUGE),
    "terabytes in a dict": lambda marker: {"w": Claim(fuzz.HUGE)},
    "terabytes by stride": lambda marker: {"w": strided(claimed=fuzz.HUGE)},
    "gigabytes by stride": lambda marker: {"w": strided(claimed=1 << 30)},
    "no data": lambda marker: {"w": torch.ones(3, device="meta")},
    "sparse": lambda marker: {"w": torch.ones(3).to_sparse()},
    "raw bits": lambda marker: {"w": torch.zeros(3, dtype=torch.uint8).view(torch.bits8)},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("harm", HARMFUL)
def test_a_harmful_pickle_is_refused_and_not_run(harm, zipped, folder):
    marker, mask, last = (folder / name for name in ("marker", "mask.pt", checkpoint.FILE_NAME))
    torch.save(HARMFUL[harm](marker), mask, _use_new_zipfile_serialization=zipped)
    last.write_bytes(resealed(mask.read_bytes()))
    with pytest.raises(FileFormatError, match=r"mask\.pt: expected a mask of the SalUn reference"):
        SaliencyMask.import_reference(mask)
    with pytest.raises(FileFormatError, match=r"last\.pt: this checkpoint .* Delete it to start"):
        checkpoint.load(folder, IDENTITY)
    with pytest.raises(ValueError, match=r"mask\.pt"):
        load_weights(model(), mask)
    assert not marker.exists()


def test_an_archive_whose_members_claim_terabytes_is_refused(folder):
    """Every size in the archive's directory in turn, under a checksum that fits."""
    path = folder / checkpoint.FILE_NAME
    write_checkpoint(path)
    whole = path.read_bytes()
    places = [at for at in range(len(whole)) if whole.startswith(b"PK\x01\x02", at)]
    assert len(places) >= 5
    for at, offset in itertools.product(places, (20, 24)):  # compressed size, size
        size = struct.pack("<I", 0xFFFFFFFE)
        content = resealed(whole[: at + offset] + size + whole[at + offset + 4 :])
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="Delete it to start afresh"):
            checkpoint.load(folder, IDENTITY)


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 100_000,
        b'{"__metadata__":{"format":' + b"[" * 100_000,
        b'{"w":{"dtype":"F32","shape":[4398046511104],"data_offsets":[0,17592186044416]}}',
        b'{"w":{"dtype":"F32","shape":[0,4398046511104],"data_offsets":[0,0]}}',
        b'{"w":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}',
    ],
)
def test_a_safetensors_header_that_claims_too_much_is_refused(header, folder):
    path = folder / "file.safetensors"
    for length in (len(header), fuzz.HUGE, (1 << 64) - 1):
        path.write_bytes(struct.pack("<Q", length) + header)
        for load in (SaliencyMask.load, Saliency.load, UnlearningPatch.load):
            with pytest.raises(FileFormatError, match=r"file\.safetensors: expected a salun-fast"):
                load(path)


def test_facts_nested_without_end_are_refused(folder, monkeypatch):
    path = folder / "file.safetensors"
    monkeypatch.setattr(files.json, "dumps", lambda value: "[" * 100_000)
    files.save_tensors(path, {}, kind="salun-fast mask", version=1, facts={"names": 0})
    with pytest.raises(FileFormatError, match="contents contradict its header"):
        SaliencyMask.load(path)


def test_a_sealed_file_is_not_trusted_for_its_seal(folder):
    path = folder / checkpoint.FILE_NAME
    sealed.save(path, {"format": checkpoint.FORMAT, "identity": "[" * 100_000})
    with pytest.raises(FileFormatError, match="contents contradict its header"):
        checkpoint.load(folder, IDENTITY)
