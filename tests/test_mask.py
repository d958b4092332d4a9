"""SaliencyMask: bits, algebra, files (A12) and belonging to a model (A11)."""

from __future__ import annotations

import copy
import json
import math
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from salun_fast import files
from salun_fast.files import FileFormatError
from salun_fast.mask import MaskMismatchError, SaliencyMask
from tests.conftest import AWKWARD_SHAPES

SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=5)


def awkward_mask(seed: int = 0, share: float = 0.5) -> SaliencyMask:
    generator = torch.Generator().manual_seed(seed)
    return SaliencyMask.from_dict(
        {f"p{i}": torch.rand(s, generator=generator) < share for i, s in enumerate(AWKWARD_SHAPES)},
        score="abs_of_sum",
    )


@st.composite
def dicts(draw, count: int = 1):
    """``count`` dicts of bool tensors with the same names and shapes."""
    shapes = draw(SHAPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return [
        {f"p{i}": torch.rand(s, generator=generator) < share for i, s in enumerate(shapes)}
        for _ in range(count)
    ]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[n], right[n]) for n in left)


# --- bits -----------------------------------------------------------------------------------------


@given(dicts())
@settings(max_examples=60, deadline=None)
def test_bits_come_back_and_are_counted(given_dicts):
    (masks,) = given_dicts
    mask = SaliencyMask.from_dict(masks)
    assert same(mask.to_dict(), masks)
    assert mask.count == sum(int(m.sum()) for m in masks.values())
    assert mask.numel == sum(m.numel() for m in masks.values())
    assert mask.density == (mask.count / mask.numel if mask.numel else 0)
    for name, share in mask.layer_densities().items():
        assert share == int(masks[name].sum()) / max(1, masks[name].numel())


@given(dicts(count=2))
@settings(max_examples=60, deadline=None)
def test_algebra_is_that_of_sets(given_dicts):
    left, right = given_dicts
    a, b = SaliencyMask.from_dict(left), SaliencyMask.from_dict(right)
    assert same((a & b).to_dict(), {n: left[n] & right[n] for n in left})
    assert same((a | b).to_dict(), {n: left[n] | right[n] for n in left})
    assert same((~a).to_dict(), {n: ~left[n] for n in left})
    assert ~~a == a
    assert ~(a & b) == ~a | ~b
    assert (~a).count == a.numel - a.count
    both, either = (a & b).count, (a | b).count
    assert a.iou(b) == b.iou(a) == (both / either if either else 1.0)
    assert a.iou(a) == 1.0


def test_a4_bits_are_row_major_whatever_the_memory_format():
    plain = torch.rand(4, 3, 5, 5) < 0.5
    masks = {"w": plain.contiguous(memory_format=torch.channels_last)}
    mask = SaliencyMask.from_dict(masks)
    assert mask == SaliencyMask.from_dict({"w": plain})
    octets = np.packbits(plain.numpy().reshape(-1), bitorder="little").tobytes()
    assert mask.words["w"].numpy().tobytes()[: len(octets)] == octets


def test_a12_mask_takes_one_bit_per_weight_and_64_times_less_than_the_reference():
    mask = SaliencyMask.from_dict({"w": torch.ones(1000, 1000, dtype=torch.bool)})
    assert mask.words["w"].nbytes * 64 == 1000 * 1000 * torch.int64.itemsize
    for name, shape in awkward_mask().shapes.items():
        assert awkward_mask().words[name].nbytes == 4 * math.ceil(math.prod(shape) / 32)


def test_fingerprint_tells_names_shapes_and_single_bits_apart():
    bits = torch.rand(6, 5) < 0.5
    flipped = bits.clone()
    flipped[5, 4] ^= True
    variants = [
        {"a": bits},
        {"b": bits},
        {"a": bits.view(5, 6)},
        {"a": flipped},
        {"a": bits, "b": bits},
        {"b": bits, "a": bits},
    ]
    masks = [SaliencyMask.from_dict(variant) for variant in variants]
    assert len({mask.fingerprint for mask in masks}) == len(masks)
    assert len(set(masks)) == len(masks)
    assert SaliencyMask.from_dict({"a": bits}, score="x") == masks[0]
    assert masks[0] != {"a": bits}


def test_mask_survives_copying_pickling_and_moving():
    mask = awkward_mask()
    for other in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask)), mask.to("cpu")):
        assert other == mask
        assert other.score == mask.score
        assert other.names == mask.names


def test_lookup_by_prefixed_name_and_worded_miss():
    mask = SaliencyMask.from_dict({"fc.weight": torch.ones(2, 2, dtype=torch.bool)})
    assert torch.equal(mask["module.fc.weight"], mask["fc.weight"])
    assert "_orig_mod.fc.weight" in mask
    assert "fc.bias" not in mask
    assert list(mask) == mask.names == ["fc.weight"]
    assert len(mask) == 1
    assert "4 of 4 weights" in repr(mask)
    with pytest.raises(KeyError, match="the mask has no parameter 'fc.bias'; it begins with 'fc.w"):
        mask["fc.bias"]


# --- bad input ------------------------------------------------------------------------------------


def test_only_bool_tensors_are_packed():
    with pytest.raises(TypeError, match=r"mask 'w': expected a bool tensor, found torch.float32"):
        SaliencyMask.from_dict({"w": torch.ones(3)})
    with pytest.raises(TypeError, match=r"mask 'w': expected a bool tensor, found list"):
        SaliencyMask.from_dict({"w": [True]})  # type: ignore[dict-item]


def test_words_are_checked():
    words = awkward_mask().words
    shapes = awkward_mask().shapes
    assert SaliencyMask.from_words(words, shapes) == awkward_mask()
    with pytest.raises(ValueError, match=r"'w': bits past its 31 elements are set"):
        SaliencyMask.from_words({"w": torch.tensor([-1], dtype=torch.int32)}, {"w": (31,)})
    with pytest.raises(ValueError, match=r"expected int32 \[2\] words for shape \(33,\), found "):
        SaliencyMask.from_words({"w": torch.zeros(1, dtype=torch.int32)}, {"w": (33,)})
    with pytest.raises(ValueError, match=r"found torch.int64 \[1\]"):
        SaliencyMask.from_words({"w": torch.zeros(1, dtype=torch.int64)}, {"w": (3,)})
    with pytest.raises(ValueError, match="'v' is only in one"):
        SaliencyMask.from_words({}, {"v": (3,)})


def test_masks_of_different_models_do_not_combine():
    a = SaliencyMask.from_dict({"w": torch.ones(3, dtype=torch.bool)})
    b = SaliencyMask.from_dict({"w": torch.ones(4, dtype=torch.bool)})
    c = a.to_dict() | {"v": torch.ones(1, dtype=torch.bool)}
    with pytest.raises(MaskMismatchError, match=r"'w' is \(3,\) in the first and \(4,\) in the se"):
        a & b
    with pytest.raises(MaskMismatchError, match="'v' is only in the second"):
        a | SaliencyMask.from_dict(c)
    with pytest.raises(MaskMismatchError, match=r"'v' is \(1,\) in the first and missing in the"):
        SaliencyMask.from_dict(c).iou(a)
    with pytest.raises(TypeError, match="expected a SaliencyMask, found int"):
        a & 1  # type: ignore[operator]


def test_masks_combine_over_prefixes_and_order():
    left, right = torch.rand(9) < 0.5, torch.rand(5) < 0.5
    a = SaliencyMask.from_dict({"x": left, "y": right})
    b = SaliencyMask.from_dict({"module.y": right, "module.x": left})
    assert a & b == a
    assert a.iou(b) == 1.0


# --- A11: does it fit the model? ------------------------------------------------------------------


def model_and_mask() -> tuple[nn.Module, SaliencyMask]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in model.named_parameters()}
    return model, SaliencyMask.from_dict(masks)


def test_a11_fitting_mask_passes_in_every_form_and_under_wrappers():
    model, mask = model_and_mask()
    for form in (model, model.named_parameters(), dict(model.named_parameters())):
        mask.check(form)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        mask.check(wrapped)
        aligned = mask.aligned_to(wrapped)
        assert aligned.names == [name for name, _ in wrapped.named_parameters()]
        assert next(iter(aligned.to_dict().values())).equal(mask["0.weight"])
        aligned.check(model)
    assert mask.aligned_to(model) == mask
    backwards = dict(reversed(list(model.named_parameters())))
    assert mask.aligned_to(backwards).names == list(backwards)


def test_a11_shape_mismatch_is_worded_with_both_shapes_file_and_remedy(tmp_path: Path):
    _, mask = model_and_mask()
    wider = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    mask.save(tmp_path / "mask.safetensors")
    loaded = SaliencyMask.load(tmp_path / "mask.safetensors")
    with pytest.raises(MaskMismatchError) as error:
        loaded.check(wider)
    assert str(error.value) == (
        "SaliencyMask does not fit the model: '1.weight' has shape (5, 3) in the model and (2, 3) "
        f"in the mask ({tmp_path / 'mask.safetensors'}) (and 1 more). Rebuild the mask for this "
        "model or pass strict=False to skip it."
    )
    with pytest.raises(MaskMismatchError, match=r"in the mask \(from the run\) "):
        mask.check(wider, source="from the run")
    mask.check(wider, strict=False)
    assert mask.aligned_to(wider, strict=False).names == ["0.weight", "0.bias"]


def test_a11_missing_and_extra_entries_are_named():
    model, mask = model_and_mask()
    part = SaliencyMask.from_dict({"0.weight": mask["0.weight"]})
    with pytest.raises(MaskMismatchError, match=r"'0.bias' is a trainable parameter of the model "):
        part.check(model)
    part.check(model, strict=False)
    with pytest.raises(MaskMismatchError, match=r"'1.weight' is not in the model and has shape"):
        mask.check([(f"0.{name}", p) for name, p in model[0].named_parameters()])


def test_a8_frozen_parameter_needs_no_entry():
    model, mask = model_and_mask()
    model[0].requires_grad_(False)
    SaliencyMask.from_dict({n: mask[n] for n in ("1.weight", "1.bias")}).check(model)
    mask.check(model)


@pytest.mark.parametrize("strict", [True, False])
def test_a11_mask_that_meets_no_trainable_parameter_is_an_error(strict: bool):
    model, mask = model_and_mask()
    model.requires_grad_(False)
    adapter = nn.Parameter(torch.zeros(2))
    lora = [*model.named_parameters(), ("lora", adapter)]
    with pytest.raises(MaskMismatchError, match=r"SaliencyMask does not fit the model: .*'lora'"):
        mask.check(lora, strict=strict)
    with pytest.raises(MaskMismatchError, match="does not fit"):
        mask.check([("other", adapter)], strict=strict)


# --- files ----------------------------------------------------------------------------------------


def test_a12_saved_mask_comes_back_with_its_metadata(tmp_path: Path):
    path = tmp_path / "mask.safetensors"
    mask = awkward_mask()
    mask.save(path)
    loaded = SaliencyMask.load(path)
    assert loaded == mask
    assert loaded.names == mask.names
    assert loaded.shapes == mask.shapes
    assert (loaded.score, loaded.source) == ("abs_of_sum", str(path))
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        assert {opened.get_tensor(n).dtype for n in opened.keys()} == {torch.uint32}  # noqa: SIM118
    assert metadata["format"] == "salun-fast mask"
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["names"]) == mask.names
    assert json.loads(metadata["shapes"]) == [list(shape) for shape in mask.shapes.values()]
    assert json.loads(metadata["score"]) == "abs_of_sum"
    assert json.loads(metadata["density"]) == mask.density
    assert json.loads(metadata["fingerprint"]) == mask.fingerprint


@given(dicts())
@settings(max_examples=25, deadline=None)
def test_a12_any_mask_survives_both_file_formats(given_dicts):
    mask = SaliencyMask.from_dict(given_dicts[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask"
        mask.save(path)
        assert SaliencyMask.load(path) == mask
        mask.export_reference(path)
        assert SaliencyMask.import_reference(path) == mask


def test_a12_file_of_the_reference_is_read_and_written_without_loss(tmp_path: Path):
    reference = {
        "conv1.weight": (torch.rand(8, 3, 3, 3) < 0.5).to(torch.int64),
        "bn1.bias": torch.zeros(8, dtype=torch.int64),
        "module.fc.weight": torch.ones(5, 8, dtype=torch.int64),
    }
    torch.save(reference, tmp_path / "with_0.5.pt")
    mask = SaliencyMask.import_reference(tmp_path / "with_0.5.pt")
    assert mask.source == str(tmp_path / "with_0.5.pt")
    mask.export_reference(tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert same(back, reference)
    assert {tensor.dtype for tensor in back.values()} == {torch.int64}


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    "content",
    [
        {},
        [torch.ones(2)],
        torch.ones(2),
        {"w": torch.tensor([0, 2])},
        {"w": torch.tensor([0.5])},
        {"w": torch.tensor([float("nan")])},
        {"w": 1},
        {1: torch.ones(2)},
        {"w": torch.ones(2).to_sparse()},
        {"state_dict": {"w": torch.ones(2)}},
        {"w": Payload()},
    ],
    ids=lambda content: type(content).__name__,
)
def test_a12_foreign_pt_is_one_clear_error_and_runs_no_code(tmp_path: Path, content):
    path = tmp_path / "mask.pt"
    torch.save(content, path)
    with pytest.raises(FileFormatError, match=r"mask\.pt: expected a mask of the SalUn reference"):
        SaliencyMask.import_reference(path)
    assert not Payload.ran


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a12_truncated_or_altered_pt_never_gives_another_mask(tmp_path: Path):
    mask = SaliencyMask.from_dict({"w": torch.rand(60) < 0.5, "v": torch.rand(3, 3) < 0.5})
    mask.export_reference(tmp_path / "mask.pt")
    whole = (tmp_path / "mask.pt").read_bytes()
    broken = tmp_path / "broken.pt"
    for length in range(0, len(whole), 97):
        broken.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"broken\.pt: "):
            SaliencyMask.import_reference(broken)
    noticed = 0
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= 1  # the bit in which 0 and 1 differ
        broken.write_bytes(altered)
        try:
            assert SaliencyMask.import_reference(broken) == mask  # padding and time stamps
        except FileFormatError:
            noticed += 1
    assert noticed > 69 * 8  # every byte of the values, at the least


def test_a12_pt_of_the_time_before_zip_archives_is_read(tmp_path: Path):
    reference = {"w": torch.tensor([0, 1, 1])}
    torch.save(reference, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    mask = SaliencyMask.import_reference(tmp_path / "old.pt")
    assert mask["w"].tolist() == [False, True, True]


def test_a12_file_that_is_no_pt_is_one_clear_error(tmp_path: Path):
    (tmp_path / "mask.pt").write_bytes(b"not a mask")
    with pytest.raises(FileFormatError, match="Pass the file that its generate_mask step wrote"):
        SaliencyMask.import_reference(tmp_path / "mask.pt")
    with pytest.raises(FileNotFoundError):
        SaliencyMask.import_reference(tmp_path / "absent.pt")


def test_foreign_and_contradicting_files_are_one_clear_error(tmp_path: Path):
    path = tmp_path / "mask.safetensors"
    path.write_text("not a mask")
    with pytest.raises(FileFormatError, match=r"mask\.safetensors: expected a salun-fast mask fil"):
        SaliencyMask.load(path)
    words = {"w": torch.tensor([5], dtype=torch.int32).view(torch.uint32)}
    good = SaliencyMask.from_words({"w": torch.tensor([5], dtype=torch.int32)}, {"w": (3,)})
    facts = {"names": ["w"], "shapes": [[3]], "score": None, "fingerprint": good.fingerprint}
    for wrong in (
        {"names": ["v"]},
        {"names": []},
        {"shapes": [[33]]},
        {"shapes": [[2]]},
        {"shapes": []},
        {"shapes": ["x"]},
        {"names": None},
        {"fingerprint": "0" * 64},
    ):
        files.save_tensors(path, words, kind="salun-fast mask", version=1, facts=facts | wrong)
        with pytest.raises(FileFormatError, match=r"contradict its header|fingerprint does not"):
            SaliencyMask.load(path)
    files.save_tensors(path, words, kind="salun-fast mask", version=1, facts=facts)
    assert SaliencyMask.load(path) == good
