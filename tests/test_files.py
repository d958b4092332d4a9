"""Files are whole or absent, and every altered bit is noticed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from salun_fast import files
from salun_fast.files import FileFormatError

KIND = "salun-fast thing"


def save(path: Path, tensors=None, kind: str = KIND, version: int = 1, **facts) -> None:
    tensors = {"a.weight": torch.arange(6.0).view(2, 3)} if tensors is None else tensors
    files.save_tensors(path, tensors, kind=kind, version=version, facts=facts)


def load(path: Path):
    return files.load_tensors(path, kind=KIND, version=1)


# --- atomic_write ---------------------------------------------------------------------------------


def test_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path):
    target = tmp_path / "file"
    for text in ("old", "new"):
        files.atomic_write(target, lambda path, text=text: path.write_text(text))
        assert target.read_text() == text
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failing_write_keeps_the_old_file_and_passes_its_error_on(tmp_path: Path, error):
    target = tmp_path / "file"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        files.atomic_write(target, write)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_link_keeps_pointing_to_the_file_it_names(tmp_path: Path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.atomic_write(tmp_path / "link", lambda path: path.write_text("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere is missing; create it first"):
        files.atomic_write(tmp_path / "nowhere" / "file", lambda path: path.write_text("x"))


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda path: None)  # killed: nobody cleans up
    with pytest.raises(SystemExit):
        files.atomic_write(tmp_path / "file", lambda path: (path.touch(), sys.exit()))
    monkeypatch.undo()
    (tmp_path / ".folder.0123456789ab.tmp").mkdir()
    (tmp_path / ".file.tmp").touch()
    assert len(os.listdir(tmp_path)) == 3
    files.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".file.tmp", ".folder.0123456789ab.tmp"]
    files.remove_leftovers(tmp_path / "nowhere")


# --- lines of JSON --------------------------------------------------------------------------------


def test_appended_lines_come_back_without_one_that_a_kill_cut_off(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    assert files.read_json_lines(path) == []
    values = [{"loss": 0.5}, ["ä\u2028", None], 3]
    for value in values:
        files.append_json_line(path, value)
    assert files.read_json_lines(path) == values
    whole = path.read_bytes()
    for lost in (1, 2):
        path.write_bytes(whole[:-lost])
        assert files.read_json_lines(path) == values[:2]


@pytest.mark.parametrize("line", [b"{", b"", b"\xff", b"[" * 100_000])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"1\n" + line + b"\n2\n")
    with pytest.raises(
        FileFormatError, match=r"lines\.jsonl: line 2 is not a JSON value .*Mend or"
    ):
        files.read_json_lines(path)


# --- save_tensors and load_tensors ----------------------------------------------------------------


def test_tensors_and_facts_come_back_as_they_were(tmp_path: Path):
    tied = torch.randn(4, 3)
    tensors = {
        "b": torch.tensor([1, -1], dtype=torch.int32).view(torch.uint32),
        "a": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "nan": torch.tensor([float("nan"), -0.0, 1e-45]),
        "empty": torch.zeros(3, 0),
        "scalar": torch.tensor(7),
        "half": torch.randn(3).bfloat16(),
        "tied": tied,
        "tied again": tied,
        "view": tied[1:],
        "ä.§": torch.ones(1, dtype=torch.bool),
    }
    save(tmp_path / "file", tensors, names=["b", "a"], density=0.1, score=None)
    back, facts = load(tmp_path / "file")
    assert facts == {"names": ["b", "a"], "density": 0.1, "score": None}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert files.bytes_of(back[name]) == files.bytes_of(tensor)


def test_every_flipped_bit_is_one_clear_error(tmp_path: Path):
    path, broken = tmp_path / "file", tmp_path / "broken"
    save(path, {"w": torch.arange(3, dtype=torch.int32)}, score="abs_of_sum")
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        broken.write_bytes(altered)
        with pytest.raises(FileFormatError, match="broken: "):
            load(broken)


def test_every_truncation_is_one_clear_error(tmp_path: Path):
    path, broken = tmp_path / "file", tmp_path / "broken"
    save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        broken.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="broken: "):
            load(broken)
    broken.write_bytes(whole + b"\0")
    with pytest.raises(FileFormatError, match="broken: "):
        load(broken)


def test_foreign_files_are_told_apart(tmp_path: Path):
    path = tmp_path / "file"
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(FileFormatError, match=r"truncated, altered or foreign"):
        load(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(FileFormatError, match="found another program's file"):
        load(path)
    save(path, kind="salun-fast other")
    with pytest.raises(FileFormatError, match="expected a salun-fast thing file, found a salun-fa"):
        load(path)


def test_newer_version_says_so(tmp_path: Path):
    save(tmp_path / "file", version=2)
    with pytest.raises(FileFormatError, match=r"another format version than 1\. Read it with"):
        load(tmp_path / "file")


def test_missing_file_stays_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "file")
    with pytest.raises(OSError, match="directory"):
        load(tmp_path)


def test_loaded_tensors_outlive_the_file(tmp_path: Path):
    save(tmp_path / "file")
    tensor = load(tmp_path / "file")[0]["a.weight"]
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(8)
    assert torch.equal(tensor, torch.arange(6.0).view(2, 3))


def test_other_programs_can_read_the_tensors(tmp_path: Path):
    save(tmp_path / "file", score="x")
    with safe_open(tmp_path / "file", framework="pt") as opened:
        assert set(opened.metadata()) == {"format", "format_version", "sha256", "score"}
        assert torch.equal(opened.get_tensor("a.weight"), torch.arange(6.0).view(2, 3))
