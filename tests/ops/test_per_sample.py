"""per_sample_: Σ_i |∇_W ℓ_i| of a convolution's weight. Whole numbers make every sum exact, so that
any order of additions gives the same bits; real ones agree to rounding."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salun_fast import ops, reference
from salun_fast.ops import FLOATS
from tests.conftest import same_bytes


class Layer(NamedTuple):
    samples: int
    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    def window(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def tensors(self, seed: int, dtype: torch.dtype, whole: bool) -> tuple[Tensor, Tensor]:
        """Gradients of the outputs, and inputs."""
        generator = torch.Generator().manual_seed(seed)
        sides = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        places = [(s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in sides]
        shapes = (self.samples, self.outputs, *places), (self.samples, self.inputs, *self.size)
        if whole:
            made = [torch.randint(-4, 5, shape, generator=generator).float() for shape in shapes]
        else:
            made = [torch.randn(shape, generator=generator) for shape in shapes]
        grads, inputs = (tensor.to(dtype) for tensor in made)
        return grads, inputs


# Around the panel (8, 16, 32 lanes), the tile (6, 14 rows; 64 x 64 on a GPU) and the run of places.
LAYERS = {
    "one weight": Layer(1, 1, 1, (2, 3), (1, 1)),
    "3x3": Layer(3, 5, 33, (6, 5), padding=(1, 1)),
    "strided": Layer(2, 4, 8, (7, 9), stride=(2, 3), padding=(1, 0)),
    "dilated": Layer(2, 3, 7, (8, 8), dilation=(2, 3), padding=(2, 3)),
    "grouped": Layer(2, 6, 8, (5, 4), kernel=(3, 2), padding=(1, 1), groups=2),
    "depthwise": Layer(2, 5, 5, (5, 5), padding=(1, 1), groups=5),
    "1x1": Layer(2, 70, 65, (3, 3), (1, 1)),
    "sequence": Layer(3, 15, 17, (1, 37), (1, 1)),
    "long": Layer(2, 2, 3, (1, 300), (1, 5), padding=(0, 2)),
    "many samples": Layer(19, 2, 3, (2, 2), (2, 2)),
}


def _both(layer: Layer, grads: Tensor, inputs: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Ours and the oracle's, on top of scores that are there."""
    ours = torch.arange(float(torch.tensor(layer.shape()).prod())).reshape(layer.shape())
    oracle = ours.clone()
    stride, padding, dilation, groups = layer.window()
    ops.per_sample_(
        ours, grads, inputs, stride=stride, padding=padding, dilation=dilation, groups=groups,
        scale=scale,
    )  # fmt: skip
    reference.per_sample_(oracle, grads, inputs, *layer.window(), scale)
    return ours, oracle


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LAYERS)
def test_whole_numbers_give_the_bits_of_the_oracle(name, dtype):
    layer = LAYERS[name]
    ours, oracle = _both(layer, *layer.tensors(1, dtype, whole=True), scale=0.5)
    assert same_bytes(ours, oracle)
    assert bool((ours > torch.arange(ours.numel()).reshape(ours.shape)).any())


@pytest.mark.parametrize("name", ["3x3", "grouped", "sequence"])
def test_real_numbers_agree_to_rounding(name):
    layer = LAYERS[name]
    ours, oracle = _both(layer, *layer.tensors(2, torch.float32, whole=False))
    torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=1e-5)


def test_magnitudes_are_taken_per_sample():
    """Two samples whose gradients cancel: the batch's is 0, the score is not (ACCEPTANCE A6)."""
    inputs = torch.ones(2, 1, 1, 3)
    grads = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 1, 1, 3)
    scores = torch.zeros(1, 1, 1, 1)
    ops.per_sample_(scores, grads, inputs)
    assert scores.item() == 6.0


@pytest.mark.parametrize("which", ["grads", "inputs", "both"])
def test_any_strides_are_read_where_they_lie(which):
    layer = LAYERS["grouped"]
    grads, inputs = layer.tensors(3, torch.float32, whole=True)
    expected, _ = _both(layer, grads, inputs)
    if which != "inputs":
        grads = grads.to(memory_format=torch.channels_last)
    if which != "grads":
        wide = torch.full((*inputs.shape[:3], 2 * inputs.shape[3]), torch.nan)
        wide[..., ::2] = inputs
        inputs = wide[..., ::2]
    found, _ = _both(layer, grads, inputs)
    assert same_bytes(found, expected)


def test_scores_in_channels_last_get_the_same_numbers():
    layer = LAYERS["3x3"]
    grads, inputs = layer.tensors(4, torch.float32, whole=True)
    plain = torch.zeros(layer.shape())
    moved = torch.zeros(layer.shape()).to(memory_format=torch.channels_last)
    for scores in (plain, moved):
        ops.per_sample_(scores, grads, inputs, padding=layer.padding)
    assert torch.equal(plain, moved)
    assert moved.is_contiguous(memory_format=torch.channels_last)


def test_more_samples_than_are_staged_at_a_time(two_threads):
    layer = Layer(5, 3, 4, (130, 130), (1, 1))
    ours, oracle = _both(layer, *layer.tensors(5, torch.float32, whole=True))
    assert same_bytes(ours, oracle)


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (3, 2, 4, 4)])
def test_nothing_to_add(shape):
    """No sample, or no output."""
    outputs = 3 if shape[0] == 0 else 0
    scores = torch.ones(outputs, 2, 3, 3)
    ops.per_sample_(scores, torch.ones(shape[0], outputs, 2, 2), torch.ones(shape))
    assert bool((scores == 1).all())


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 5),
    kernel=st.tuples(*[st.integers(1, 3)] * 2),
    stride=st.tuples(*[st.integers(1, 3)] * 2),
    padding=st.tuples(*[st.integers(0, 2)] * 2),
    dilation=st.tuples(*[st.integers(1, 2)] * 2),
    groups=st.integers(1, 3),
)
def test_any_window(sizes, kernel, stride, padding, dilation, groups):
    samples, inputs, outputs, height, width = sizes
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = (height + reach[0], width + reach[1])
    layer = Layer(
        samples, inputs * groups, outputs * groups, size, kernel, stride, padding, dilation, groups
    )
    ours, oracle = _both(layer, *layer.tensors(6, torch.float32, whole=True))
    assert same_bytes(ours, oracle)


@pytest.mark.parametrize(
    ("scores", "grads", "inputs", "words"),
    [
        ((2, 1, 3, 3), (1, 2, 3, 3), (1, 1, 4, 4), r"expected \(1, 2, 2, 2\) gradients"),
        ((2, 1, 3, 3), (2, 2, 2, 2), (1, 1, 4, 4), r"expected \(1, 2, 2, 2\) gradients"),
        ((2, 1, 3, 3), (1, 2, 2, 2), (1, 3, 4, 4), "1 input channels"),
        ((2, 1, 3, 3), (1, 2, 4), (1, 1, 4, 4), "grads: expected .samples, channels"),
    ],
)
def test_shapes_that_do_not_fit_are_named_and_nothing_is_written(scores, grads, inputs, words):
    target = torch.zeros(scores)
    with pytest.raises(ValueError, match=words):
        ops.per_sample_(target, torch.ones(grads), torch.ones(inputs))
    assert not bool(target.any())


def test_dtypes_that_no_kernel_reads_are_named():
    with pytest.raises(TypeError, match="inputs: tensor 0 is torch.float64"):
        ops.per_sample_(
            torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2).double()
        )
