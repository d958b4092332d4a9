"""A sealed torch file is read as it was written, or not at all."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from salun_fast import sealed
from salun_fast.files import FileFormatError
from tests.conftest import same_bytes
from tests.hostile import Touch, reseal

CONTENT = {"w": torch.tensor([1.5, -0.0, float("nan")]), "step": 3, "names": ["a", "ä"]}


def load(path: Path):
    return sealed.load(path, "thing", "Make it again")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sealed.save(tmp_path / "thing.pt", CONTENT)
    return tmp_path / "thing.pt"


def assert_same(found) -> None:
    assert found.keys() == CONTENT.keys()
    assert same_bytes(found["w"], CONTENT["w"])
    assert (found["step"], found["names"]) == (3, ["a", "ä"])


def test_content_comes_back_and_nothing_else_is_left_in_the_folder(path):
    assert_same(load(path))
    assert os.listdir(path.parent) == ["thing.pt"]


def test_torch_and_zip_programs_read_a_sealed_file_as_any_other(path):
    assert_same(torch.load(path, weights_only=True))
    assert_same(torch.load(path, weights_only=True, mmap=True))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == path.read_bytes()[-71:]


def test_a_flipped_bit_in_any_byte_is_one_clear_error(path):
    whole = path.read_bytes()
    for index in range(len(whole)):
        altered = bytearray(whole)
        altered[index] ^= 1 << index % 8
        path.write_bytes(altered)
        with pytest.raises(FileFormatError, match=r"thing\.pt: this thing (was|is tr).*Make it ag"):
            load(path)


def test_every_truncation_and_every_addition_is_one_clear_error(path):
    whole = path.read_bytes()
    for altered in [whole[:length] for length in range(len(whole))] + [
        whole + b"\0",
        b"\0" + whole,
    ]:
        path.write_bytes(altered)
        with pytest.raises(FileFormatError, match=r"thing\.pt: this thing .*\. Make it again\."):
            load(path)


def test_a_file_without_checksum_says_so(path):
    torch.save(CONTENT, path)
    with pytest.raises(FileFormatError, match="has no checksum: an older salun-fast or another"):
        load(path)


def test_missing_file_stays_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.pt")


def test_a_file_altered_after_sealing_is_never_unpickled(path, monkeypatch):
    def unpickled(*args, **kwargs):
        raise AssertionError("unpickled")

    path.write_bytes(path.read_bytes().replace(b"names", b"nAmes", 1))
    monkeypatch.setattr(torch, "load", unpickled)
    with pytest.raises(FileFormatError, match="its checksum does not fit"):
        load(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_in_a_properly_sealed_file_is_not_run(form, path):
    marker = path.with_name("marker")
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Touch(marker), protocol=2))
    else:
        torch.save(Touch(marker), path, _use_new_zipfile_serialization=form == "zip")
    reseal(path)
    with pytest.raises(FileFormatError, match="holds more than tensors and plain values"):
        load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Touch(marker)))  # it would have been
    assert marker.exists()


def test_writing_needs_no_copy_of_the_tensors_in_memory(path):
    """Sealing reads the file block by block."""
    blocks = []
    hashed = sealed.hashlib.sha256

    class Watched:
        def __init__(self):
            self.digest = hashed()

        def update(self, block):
            blocks.append(len(block))
            self.digest.update(block)

        def hexdigest(self):
            return self.digest.hexdigest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed.hashlib, "sha256", Watched)
        sealed.save(path, {"w": torch.zeros(3 << 20, dtype=torch.uint8)})
    assert sum(blocks) == path.stat().st_size - 64
    assert max(blocks) == 1 << 20
