"""An unlearning patch: applied and removed bit for bit, or refused with nothing changed."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from salun_fast import SaliencyMask, files, patch
from salun_fast.files import FileFormatError
from salun_fast.patch import PatchMismatchError, UnlearningPatch
from tests.conftest import awkward_tensors, clones, same_bytes

INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def original() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 3))
    return model.to(memory_format=torch.channels_last)


def unlearned() -> nn.Module:
    """The original with the first row of every parameter and the running mean moved."""
    model = original()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[0] += 0.5
        model[1].running_mean[2] = -0.0
        model[1].running_mean[3] = float("nan")
    return model


def same_model(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(same_bytes(value, other[name]) for name, value in a.state_dict().items())


def made() -> UnlearningPatch:
    return UnlearningPatch.between(original(), unlearned())


# --- round trips ----------------------------------------------------------------------------------


def random_bits_(tensor: Tensor, share: float, generator: torch.Generator) -> None:
    """Any pattern may come: NaN with payload, infinities, subnormals, -0.0."""
    patterns = tensor.view(INTEGERS[tensor.dtype])
    octets = (*tensor.shape, tensor.element_size())
    random = torch.randint(0, 256, octets, dtype=torch.uint8, generator=generator)
    taken = torch.rand(tensor.shape, generator=generator) < share
    patterns[taken] = random.view(patterns.dtype).squeeze(-1)[taken]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(INTEGERS)),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    chunk=st.sampled_from([32, 96, 1 << 22]),
    seed=st.integers(0, 1000),
)
def test_any_bits_in_any_shape_and_layout_come_back(dtype, share, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    old = [tensor for tensor in awkward_tensors(dtype, seed) if tensor.numel() < 2000]
    for tensor in old:
        random_bits_(tensor, 1.0, generator)
    new = clones(old)
    for tensor in new:
        random_bits_(tensor, share, generator)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(patch, "_CHUNK", chunk)
        check_round_trip(old, new)


def check_round_trip(old: list[Tensor], new: list[Tensor]) -> None:
    first = {f"{i}.weight": tensor for i, tensor in enumerate(old)}
    second = {f"{i}.weight": tensor for i, tensor in enumerate(new)}
    before, strides = clones(old), [tensor.stride() for tensor in old]
    found = UnlearningPatch.between(first, second)
    found.apply_(first)
    assert all(map(same_bytes, old, new))
    found.remove_(second)
    assert all(map(same_bytes, new, before))
    assert [tensor.stride() for tensor in old] == strides


def test_a_saved_patch_makes_the_unlearned_model_of_the_original_and_the_reverse(tmp_path):
    made().save(tmp_path / "patch.safetensors")
    model = original()
    found = UnlearningPatch.load(tmp_path / "patch.safetensors")
    found.apply_(model)
    assert same_model(model, unlearned())
    found.remove_(model)
    assert same_model(model, original())


def test_the_sign_of_zero_and_the_payload_of_nan_are_changes():
    old = torch.tensor([0.0, 1.0, 0.0, 2.0])
    new = torch.tensor([-0.0, 1.0, 0.0, 2.0])
    old.view(torch.int32)[3], new.view(torch.int32)[3] = 0x7FC00001, 0x7FC00002  # two NaNs
    found = UnlearningPatch.between({"w": old}, {"w": new})
    assert found.mask()["w"].tolist() == [True, False, False, True]
    found.apply_({"w": old})
    assert same_bytes(old, new)


def test_integers_bytes_and_small_floats_are_patched_too():
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.complex64):
        old, new = torch.zeros(5).to(dtype), torch.tensor([0.0, 1, 0, 1, 1]).to(dtype)
        UnlearningPatch.between({"w": old}, {"w": new}).apply_({"w": old})
        assert torch.equal(old.view(torch.uint8), new.view(torch.uint8))


def test_layouts_of_the_three_models_may_differ():
    plain = original().to(memory_format=torch.contiguous_format)
    UnlearningPatch.between(plain, unlearned()).apply_(plain)
    assert plain[0].weight.is_contiguous()
    assert same_model(plain, unlearned())
    strided = torch.zeros(6, 8)[:, ::2]  # with gaps
    made_elsewhere = UnlearningPatch.between({"w": torch.zeros(6, 4)}, {"w": torch.ones(6, 4)})
    made_elsewhere.apply_({"w": strided})
    assert strided.eq(1).all()


def test_equal_models_give_an_empty_patch(tmp_path):
    found = UnlearningPatch.between(original(), original())
    assert (found.count, found.nbytes, found.names) == (0, 0, [])
    found.save(tmp_path / "patch.safetensors")
    model = original()
    UnlearningPatch.load(tmp_path / "patch.safetensors").apply_(model)
    assert same_model(model, original())


# --- what it says ---------------------------------------------------------------------------------


def test_only_what_changed_is_stored_and_counted():
    old = {"a": torch.zeros(100), "b": torch.zeros(40, dtype=torch.float16), "c": torch.ones(7)}
    new = {name: tensor.clone() for name, tensor in old.items()}
    new["a"][[3, 99]] = 1
    new["b"][5] = 1
    found = UnlearningPatch.between(old, new)
    assert found.names == ["a", "b"]
    assert (found.count, found.numel, found.model_nbytes) == (3, 147, 400 + 80 + 28)
    assert found.nbytes == 4 * (4 + 2) + 2 * 4 + 1 * 2  # words of bits, then the weights
    assert repr(found).startswith("UnlearningPatch(2 tensors, 3 of 147 weights changed")


def test_the_mask_of_a_patch_is_where_the_models_differ():
    mask = made().mask()
    assert isinstance(mask, SaliencyMask)
    old, new = original().state_dict(), unlearned().state_dict()
    for name in mask:
        assert torch.equal(mask[name], old[name] != new[name]) or name == "1.running_mean"


# --- models as users have them --------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrapped_models_are_found_by_their_names():
    model = Wrapped(original())
    made().apply_(model)
    assert same_model(model.module, unlearned())
    UnlearningPatch.between(model, Wrapped(original())).apply_(model.module)
    assert same_model(model.module, original())


def test_parameters_stay_the_same_objects_and_their_versions_count():
    model = original()
    weight, version = model[2].weight, model[2].weight._version
    made().apply_(model)
    assert model[2].weight is weight
    assert weight.requires_grad
    assert weight._version > version


def test_a_backward_pass_through_overwritten_weights_is_noticed():
    model = original()
    loss = model[2](torch.randn(2, 7, requires_grad=True)).sum()
    made().apply_(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_buffers_that_no_file_holds_are_left_out():
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    new.load_state_dict(old.state_dict())
    for model, value in ((old, 0.0), (new, 1.0)):
        model.register_buffer("scratch", torch.full((3,), value), persistent=False)
    assert UnlearningPatch.between(old, new).count == 0


class Tied(nn.Module):
    def __init__(self, value: float, *, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.full((4,), value))
        self.head = self.embedding if tied else nn.Parameter(torch.full((4,), value))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_tensors_are_stored_once_and_patched_once(tied, tmp_path):
    made_here = UnlearningPatch.between(Tied(0.0), Tied(1.0))
    assert (made_here.count, made_here.numel) == (4, 4)
    made_here.save(tmp_path / "patch.safetensors")
    found = UnlearningPatch.load(tmp_path / "patch.safetensors")
    model = Tied(0.0, tied=tied)
    found.apply_(model)
    assert same_model(model, Tied(1.0))
    alone = {"head": torch.zeros(4)}  # files keep one of the names
    found.apply_(alone)
    assert alone["head"].eq(1).all()


def test_a_patch_of_untied_copies_patches_a_tied_model_once():
    model = Tied(0.0)
    UnlearningPatch.between(Tied(0.0, tied=False), Tied(1.0, tied=False)).apply_(model)
    assert same_model(model, Tied(1.0))


def test_tensors_that_share_memory_in_part_are_refused_and_kept():
    weight = torch.zeros(2, 3)
    old = {"encoder": weight, "decoder": weight.t()}
    new = {"encoder": torch.ones(2, 3), "decoder": torch.ones(3, 2)}
    with pytest.raises(PatchMismatchError, match="'decoder' and 'encoder' share memory"):
        UnlearningPatch.between(old, new).apply_(old)
    assert weight.eq(0).all()


# --- refused, with nothing changed ----------------------------------------------------------------


def last_weight_moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model[2].bias[0] += 1e-3
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: last_weight_moved(original()), "'2.bias' holds other weights than the original"),
        (unlearned, "'0.weight' holds the unlearned weights: this patch is already applied"),
        (lambda: original().half(), "'0.weight' is torch.float16 .* load the model in torch.float"),
        (lambda: nn.Sequential(*original()[:2]), "it has no '2.weight'"),
        (
            lambda: nn.Sequential(*original()[:2], nn.Linear(6, 3)),
            r"'2.weight' has shape \(3, 6\) in the model and \(3, 7\) in the patch",
        ),
    ],
)
def test_a_patch_for_another_model_changes_nothing(model, words):
    target = model()
    before = copy.deepcopy(target)
    with pytest.raises(PatchMismatchError, match=words) as caught:
        made().apply_(target)
    assert "Nothing was changed" in str(caught.value)
    assert same_model(target, before)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: last_weight_moved(unlearned()), "'2.bias' holds other weights than the unlearned"),
        (original, "'0.weight' holds the original weights: this patch is not applied"),
    ],
)
def test_a_patch_is_removed_only_from_what_it_made(model, words):
    target = model()
    before = copy.deepcopy(target)
    with pytest.raises(PatchMismatchError, match=words):
        made().remove_(target)
    assert same_model(target, before)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_patch_cut_off_while_it_is_written_is_taken_back(error, monkeypatch):
    target, whole = original(), patch.TensorChange.toggle_
    calls = []

    def toggle_(change: patch.TensorChange, tensor: Tensor) -> None:
        calls.append(change)
        if len(calls) == 4:
            raise error
        whole(change, tensor)

    monkeypatch.setattr(patch.TensorChange, "toggle_", toggle_)
    with pytest.raises(error):
        made().apply_(target)
    assert len(calls) == 4 + 3
    assert same_model(target, original())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"a": torch.zeros(3)}, "'b' is only in the original model"),
        (
            {"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(1)},
            "'c' is only in the changed model",
        ),
        ({"a": torch.zeros(3, 1), "b": torch.zeros(2)}, r"'a' has shape \(3,\) .* \(3, 1\)"),
        ({"a": torch.zeros(3), "b": torch.zeros(2).half()}, "'b' has dtype .* torch.float16"),
    ],
)
def test_models_of_different_names_shapes_or_dtypes_are_not_compared(changed, words):
    with pytest.raises(PatchMismatchError, match=words):
        UnlearningPatch.between({"a": torch.zeros(3), "b": torch.zeros(2)}, changed)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(3, device="meta"), "'w' has no data"),
        (torch.zeros(3).to_sparse(), "'w' has layout torch.sparse_coo"),
        (torch.zeros(1).expand(3), "'w' holds several weights at one address"),
        (torch.zeros(3, dtype=torch.complex128), "dtypes of 1, 2, 4 or 8 bytes"),
    ],
)
def test_tensors_without_plain_bytes_are_named(tensor, words):
    with pytest.raises(ValueError, match=words):
        UnlearningPatch.between({"w": tensor}, {"w": tensor})


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="expected a module or pairs"):
        made().apply_("model.safetensors")


# --- files ----------------------------------------------------------------------------------------


def test_a_truncated_or_altered_file_is_refused(tmp_path):
    path = tmp_path / "patch.safetensors"
    made().save(path)
    content = path.read_bytes()
    for position in (len(content) - 1, len(content) // 2, 20):
        altered = bytearray(content)
        altered[position] ^= 1
        path.write_bytes(altered)
        with pytest.raises(FileFormatError):
            UnlearningPatch.load(path)
    path.write_bytes(content[:-3])
    with pytest.raises(FileFormatError, match="truncated"):
        UnlearningPatch.load(path)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "mask.safetensors"
    made().mask().save(path)
    with pytest.raises(FileFormatError, match="expected a salun-fast unlearning patch file"):
        UnlearningPatch.load(path)
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(FileFormatError, match="another program's file"):
        UnlearningPatch.load(path)
    with pytest.raises(FileNotFoundError):
        UnlearningPatch.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("damage", ["lost", "too many", "dtype", "tail", "unknown"])
def test_parts_that_disagree_are_refused_although_the_checksum_fits(damage, tmp_path):
    path = tmp_path / "patch.safetensors"
    UnlearningPatch.between({"w": torch.zeros(5)}, {"w": torch.eye(5)[0]}).save(path)
    kind, version = patch._KIND, patch._VERSION
    tensors, facts = files.load_tensors(path, kind=kind, version=version)
    if damage == "lost":
        del tensors["xor/w"]
    elif damage == "too many":
        tensors["xor/w"] = torch.ones(2, dtype=torch.int32)
    elif damage == "dtype":
        tensors["xor/w"] = tensors["xor/w"].to(torch.int16)
    elif damage == "tail":
        tensors["changed/w"] = torch.tensor([64], dtype=torch.int32).view(torch.uint32)
    else:
        tensors["xor/v"] = torch.ones(1)
    files.save_tensors(path, tensors, kind=kind, version=version, facts=facts)
    with pytest.raises(FileFormatError, match="contradict"):
        UnlearningPatch.load(path)


def test_errors_name_the_file_of_the_patch(tmp_path):
    path = tmp_path / "patch.safetensors"
    made().save(path)
    with pytest.raises(PatchMismatchError, match="patch.safetensors"):
        UnlearningPatch.load(path).apply_(unlearned())
