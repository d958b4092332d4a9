"""Saliency: gathering (A6-A8, A10), exact selection (A1-A5, A9), files and errors."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from salun_fast import files
from salun_fast.files import FileFormatError
from salun_fast.mask import SaliencyMask
from salun_fast.saliency import SCORES, Saliency
from tests.conftest import awkward_tensors, same_bytes

INF, NAN = float("inf"), float("nan")
Batch = tuple[Tensor, Tensor]


def scores_of(*tensors: Tensor) -> Saliency:
    return Saliency.from_dict({f"p{i}": tensor for i, tensor in enumerate(tensors)})


def chosen(mask: SaliencyMask) -> np.ndarray:
    """The mask as one bool vector, parameters in order, each row-major."""
    return torch.cat([mask[name].reshape(-1) for name in mask.names]).numpy()


def flat(*tensors: Tensor) -> np.ndarray:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).numpy()


def first_k(magnitudes: np.ndarray, k: int, largest: bool = True) -> np.ndarray:
    """Oracle: stable argsort, NaN last."""
    order = np.argsort(-magnitudes if largest else magnitudes, kind="stable")
    selected = np.zeros(magnitudes.size, dtype=bool)
    selected[order[:k]] = True
    return selected


SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1.0, -1.0, 1.0000001, 3.4028235e38, 0.5]
VALUES = st.one_of(
    st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False, allow_infinity=False)
)
ANY_VALUES = st.one_of(VALUES, st.sampled_from([INF, -INF, NAN]))
DENSITIES = st.one_of(
    st.sampled_from([i / 10 for i in range(1, 11)]), st.floats(1e-3, 1.0, exclude_min=True)
)


def lists_of(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    """Scores of a few parameters, with empty ones and sizes around the word among them."""
    sizes = st.sampled_from([0, 1, 2, 31, 32, 33, 90])
    one = sizes.flatmap(lambda n: st.lists(values, min_size=n, max_size=n))
    return st.lists(one, min_size=1, max_size=4)


# --- A1: exactly int(N * r) -----------------------------------------------------------------------


@pytest.mark.parametrize("numel", [0, 1, 2, 3, 7, 10, 32, 33, 90, 170, 180, 1001])
@pytest.mark.parametrize("kind", ["distinct", "equal", "zero", "mostly zero"])
def test_a1_mask_has_exactly_int_of_n_times_density_bits(numel: int, kind: str):
    values = {
        "distinct": torch.randperm(numel).float(),
        "equal": torch.full((numel,), -0.25),
        "zero": torch.zeros(numel),
        "mostly zero": torch.where(torch.arange(numel) % 10 == 9, 1.0, 0.0),
    }[kind]
    saliency = scores_of(values[: numel // 3], values[numel // 3 :])
    for tenths in range(1, 11):
        density = tenths / 10
        for which in ("largest", "smallest", "random"):
            assert saliency.mask(density, which=which).count == int(numel * density)


@pytest.mark.parametrize(("numel", "count"), [(90, 62), (170, 118), (180, 125)])
def test_a1_product_is_taken_in_double_and_truncated(numel: int, count: int):
    assert int(numel * 0.7) == count
    assert scores_of(torch.randn(numel)).mask(0.7).count == count


def test_a1_density_one_selects_everything_and_a_tiny_one_nothing():
    saliency = scores_of(torch.zeros(33), torch.randn(5, 5))
    assert chosen(saliency.mask(1.0)).all()
    assert chosen(saliency.mask(1)).all()
    assert saliency.mask(1e-9).count == 0
    assert saliency.threshold(1e-9) == INF
    assert saliency.threshold(1e-9, which="smallest") == -INF


def test_a1_mask_per_tensor_has_exactly_int_of_n_times_density_bits_in_each():
    tensors = awkward_tensors(torch.float32, seed=1)
    for which in ("largest", "smallest", "random"):
        mask = scores_of(*tensors).mask(0.3, scope="tensor", which=which)
        assert [int(mask[n].sum()) for n in mask.names] == [int(t.numel() * 0.3) for t in tensors]


# --- A2, A3: the right ones -----------------------------------------------------------------------


def test_a2_tie_free_mask_is_the_references_and_topks():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator) for s in ((64, 3, 3, 3), (64,), (10, 64), (10,))]
    values = flat(*tensors)
    assert np.unique(np.abs(values)).size == values.size
    for density in (0.1, 0.5, 0.7):
        k = int(values.size * density)
        mask = chosen(scores_of(*tensors).mask(density))
        ranks = torch.argsort(torch.argsort(-torch.from_numpy(values).abs()))
        assert (mask == (ranks < k).numpy()).all()
        top = torch.from_numpy(values).abs().topk(k).indices
        assert set(np.flatnonzero(mask)) == set(top.tolist())


@given(lists_of(VALUES), DENSITIES, st.booleans())
@example([[0.0] * 40, [-0.0] * 50], 0.7, True)
@example([[1e-45, -1e-45, 0.0], [], [1.1754944e-38]], 0.5, False)
@settings(max_examples=150, deadline=None)
def test_a2_ties_zeros_and_denormals_go_by_stable_order(values, density: float, largest: bool):
    tensors = [torch.tensor(v, dtype=torch.float32) for v in values]
    saliency = scores_of(*tensors)
    which = "largest" if largest else "smallest"
    magnitudes = np.abs(flat(*tensors))
    k = int(magnitudes.size * density)
    mask = chosen(saliency.mask(density, which=which))
    assert (mask == first_k(magnitudes, k, largest)).all()
    threshold = saliency.threshold(density, which=which)
    if k:
        assert threshold == (magnitudes[mask].min() if largest else magnitudes[mask].max())
        assert mask[magnitudes > threshold].all() == largest or not largest
        assert not mask[magnitudes < threshold].any() or not largest
    else:
        assert threshold == (INF if largest else -INF)


@given(lists_of(ANY_VALUES), DENSITIES)
@settings(max_examples=100, deadline=None)
def test_a9_reference_order_has_infinity_first_and_nan_last(values, density: float):
    tensors = [torch.tensor(v, dtype=torch.float32) for v in values]
    mask = chosen(scores_of(*tensors).mask(density, nonfinite="reference"))
    magnitudes = np.abs(flat(*tensors))
    assert (mask == first_k(magnitudes, int(magnitudes.size * density))).all()


def test_a3_selected_scores_are_at_least_as_large_as_the_others():
    saliency = scores_of(torch.randn(500), torch.randn(20, 30))
    values = np.abs(flat(*(saliency[n] for n in saliency.names)))
    mask = chosen(saliency.mask(0.5))
    assert values[mask].min() >= values[~mask].max()
    lowest = chosen(saliency.mask(0.5, which="smallest"))
    assert values[lowest].max() <= values[~lowest].min()
    assert values[lowest].min() < values[~lowest].max()  # so the first assertion would catch it


def test_a3_smallest_is_the_mask_of_the_negated_scores_and_complements_the_largest():
    saliency = scores_of(torch.randn(501), torch.randn(20, 30)[:, :25])
    values = np.abs(flat(*(saliency[n] for n in saliency.names)))
    smallest = saliency.mask(0.3, which="smallest")
    assert (chosen(smallest) == first_k(-values, smallest.count)).all()
    tie_free = np.unique(values).size == values.size
    assert tie_free
    largest = saliency.mask(1 - smallest.count / saliency.numel + 1e-9)
    assert chosen(~largest).tolist() == chosen(smallest).tolist()


# --- A4: whatever the order of computing ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a4_mask_is_the_same_for_every_layout_and_thread_count(dtype, two_threads):
    tensors = awkward_tensors(dtype, seed=3)
    two = scores_of(*tensors).mask(0.37)
    torch.set_num_threads(1)
    assert scores_of(*tensors).mask(0.37) == two
    plain = [tensor.float().contiguous() for tensor in tensors]
    assert scores_of(*plain).mask(0.37) == two
    assert (chosen(two) == first_k(np.abs(flat(*plain)), two.count)).all()


@given(st.integers(0, 2**31), st.lists(st.integers(0, 200), max_size=5))
@settings(max_examples=40, deadline=None)
def test_a4_mask_is_the_same_wherever_the_list_is_cut(seed: int, cuts: list[int]):
    values = torch.randint(0, 30, (200,), generator=torch.Generator().manual_seed(seed)).float()
    edges = [0, *sorted(cuts), 200]
    parts = [values[a:b] for a, b in itertools.pairwise(edges)]
    assert (chosen(scores_of(*parts).mask(0.5)) == chosen(scores_of(values).mask(0.5))).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a4_gradients_of_any_dtype_are_summed_in_fp32(dtype):
    weight = nn.Parameter(torch.zeros(300, dtype=dtype))
    saliency = Saliency([("w", weight)])
    exact = torch.zeros(300)
    for step in range(50):
        torch.manual_seed(step)
        weight.grad = torch.randn(300).to(dtype)
        exact += weight.grad.float()
        saliency.accumulate()
    assert saliency["w"].dtype == torch.float32
    assert same_bytes(saliency["w"], exact.abs())


def test_a4_channels_last_model_gives_the_mask_of_the_contiguous_one():
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 5, 3)
    data = [(torch.randn(2, 6, 7, 7), torch.randn(2, 5, 5, 5))]
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    a, b = Saliency(plain), Saliency(last)
    for model, saliency in ((plain, a), (last, b)):
        for name, parameter in model.named_parameters():
            torch.manual_seed(len(name))
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))
        saliency.accumulate()
    assert not last.weight.is_contiguous()
    assert a.mask(0.4) == b.mask(0.4)
    assert Saliency.from_data(last, data, F.mse_loss).mask(0.4).names == a.names


# --- A5: nesting and invariance -------------------------------------------------------------------


@given(lists_of(VALUES), DENSITIES, DENSITIES)
@settings(max_examples=60, deadline=None)
def test_a5_smaller_density_is_a_subset(values, one: float, other: float):
    saliency = scores_of(*(torch.tensor(v, dtype=torch.float32) for v in values))
    small, large = sorted((one, other))
    for which in ("largest", "smallest", "random"):
        inner, outer = saliency.mask(small, which=which), saliency.mask(large, which=which)
        assert inner & outer == inner


def test_a5_mask_does_not_change_with_scale_or_sign():
    tensors = [torch.randn(100), torch.randn(7, 9).round()]
    mask = scores_of(*tensors).mask(0.5)
    for factor in (2.0, 0.25, -1.0, -1024.0):
        assert scores_of(*(factor * tensor for tensor in tensors)).mask(0.5) == mask


def test_a5_order_of_batches_and_sign_of_the_loss_do_not_matter():
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    nn.init.zeros_(model.weight)
    data = [(torch.randint(-3, 4, (5, 6)).float(), torch.randint(-3, 4, (5, 4)).float())
            for _ in range(4)]  # integer gradients: exact  # fmt: skip

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output * target).sum()

    mask = Saliency.from_data(model, data, loss).mask(0.5)
    assert Saliency.from_data(model, data[::-1], loss).mask(0.5) == mask
    assert Saliency.from_data(model, data, lambda o, t: -loss(o, t)).mask(0.5) == mask


# --- A6: abs after sum; weighting -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "opposite", "equal"),
    [
        ("abs_of_sum", lambda g: 0 * g, lambda g: 2 * g.abs()),
        ("sum_of_abs", lambda g: 2 * g.abs(), lambda g: 2 * g.abs()),
        ("sum_of_squares", lambda g: 2 * g**2, lambda g: 2 * g**2),
    ],
)
def test_a6_magnitude_is_taken_once_after_the_sum(score: str, opposite, equal):
    grad = torch.randn(40)
    for second, expected in ((-grad, opposite(grad)), (grad, equal(grad))):
        weight = nn.Parameter(torch.zeros(40))
        saliency = Saliency([("w", weight)], score=score)
        for g in (grad, second):
            weight.grad = g.clone()
            saliency.accumulate()
        assert torch.equal(saliency["w"], expected)
        assert saliency.batches == 2


def regression(sizes: list[int], seed: int = 0) -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    return model, [(torch.randn(n, 5), torch.randn(n, 3)) for n in sizes]


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(F.mse_loss(model(batch[0]), batch[1]), parameters)
    return dict(zip(names, grads, strict=True))


def test_a6_batch_weighting_counts_a_short_last_batch_as_one():
    model, data = regression([8, 8, 2])
    saliency = Saliency.from_data(model, data, F.mse_loss, weighting="batch")
    per_batch = [gradients(model, batch) for batch in data]
    for name in saliency.names:
        assert torch.equal(saliency[name], sum(g[name] for g in per_batch).abs())


@pytest.mark.parametrize("sizes", [[8, 8, 2], [3, 9, 1]])
def test_a6_sample_weighting_is_the_gradient_of_the_whole_set(sizes: list[int]):
    model, data = regression(sizes)
    saliency = Saliency.from_data(model, data, F.mse_loss, weighting="sample")
    whole = gradients(model, (torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])))
    for name in saliency.names:
        expected = whole[name].abs() * sum(sizes) / sizes[0]
        torch.testing.assert_close(saliency[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("score", SCORES)
def test_a6_weightings_agree_to_the_bit_when_batches_have_one_size(score: str):
    model, data = regression([6, 6, 6])
    one, other = (
        Saliency.from_data(model, data, F.mse_loss, score=score, weighting=weighting)
        for weighting in ("batch", "sample")
    )
    for name in one.names:
        assert same_bytes(one[name], other[name])


@pytest.mark.parametrize("score", [score for score in SCORES if score != "per_sample"])
def test_a6_weight_multiplies_what_is_added(score: str):
    weight = nn.Parameter(torch.zeros(30))
    weight.grad = torch.randn(30)
    once, thrice = Saliency([("w", weight)], score), Saliency([("w", weight)], score)
    once.accumulate()
    thrice.accumulate(weight=3.0)
    torch.testing.assert_close(thrice["w"], 3 * once["w"])


# --- A7: the model is left as it was --------------------------------------------------------------


class Awkward(nn.Module):
    """Batch norm, dropout, a frozen layer, an unused layer, shared weights, an empty parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(4, 5)
        self.tied = self.head
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1  # a new tensor, not an update in place
        hidden = self.frozen(self.dropout(self.norm(self.conv(x)))).mean((2, 3))
        return self.head(hidden)


def awkward_model() -> tuple[Awkward, list[Batch]]:
    torch.manual_seed(0)
    model = Awkward().train()
    model.norm.eval()  # a mixture of flags
    model.head.weight.grad = torch.randn(5, 4)
    return model, [(torch.randn(4, 3, 6, 6), torch.randint(0, 5, (4,))) for _ in range(3)]


def everything(model: nn.Module) -> dict[str, object]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {f"{n}.grad": (p.grad, p.grad is not None and p.grad.clone())
             for n, p in model.named_parameters()}  # fmt: skip
    flags = {f"{n}.training": m.training for n, m in model.named_modules()}
    return state | grads | flags | {"rng": torch.get_rng_state()}


def assert_unchanged(before: dict[str, object], after: dict[str, object]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert same_bytes(value, after[name]), name
        elif isinstance(value, tuple):
            assert value[0] is after[name][0], name  # the very tensor, with its values
            assert value[0] is None or same_bytes(value[1], after[name][1]), name
        else:
            assert value == after[name], name


def loader_that_draws(data: list[Batch]):
    for i in torch.randperm(len(data)).tolist():
        yield data[i]


def test_a7_from_data_leaves_the_model_and_the_random_state_as_they_were():
    model, data = awkward_model()
    before = everything(model)
    saliency = Saliency.from_data(model, loader_that_draws(data), F.cross_entropy)
    assert_unchanged(before, everything(model))
    model.eval()
    assert float(saliency["conv.weight"].max()) > 0
    for name, expected in gradients_of(model, data).items():
        torch.testing.assert_close(saliency[name], expected.abs(), rtol=1e-4, atol=1e-7)


def gradients_of(model: nn.Module, data: list[Batch]) -> dict[str, Tensor]:
    model.zero_grad()
    for x, y in data:
        F.cross_entropy(model(x), y).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("where", ["loader", "loss", "nan"])
def test_a7_from_data_leaves_the_model_as_it_was_when_something_raises(where: str):
    model, data = awkward_model()
    before = everything(model)

    def loader():
        yield data[0]
        if where == "loader":
            raise OSError("unreadable image")
        yield data[1][0] * (NAN if where == "nan" else 1), data[1][1]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if where == "loss" and target is not data[0][1]:
            raise OSError("unreadable image")
        return F.cross_entropy(output, target)

    with pytest.raises(ValueError if where == "nan" else OSError, match=r"unreadable|'head\.|NaN"):
        Saliency.from_data(model, loader(), loss)
    assert_unchanged(before, everything(model))


def test_a7_measure_restores_gradients_and_buffers_in_train_mode():
    model, data = awkward_model()
    model.norm.train()
    before = everything(model)
    saliency = Saliency(model)
    with saliency.measure() as same:
        assert same is saliency
        for x, y in data:
            F.cross_entropy(model(x), y).backward()
            assert all(p.grad is None for p in model.parameters())
    after = everything(model)
    after["rng"] = before["rng"]  # dropout is the user's own drawing here
    assert_unchanged(before, after)
    assert saliency.batches == 3


def test_a7_measured_and_accumulated_scores_are_equal_to_the_bit():
    model, data = awkward_model()
    model.eval()
    measured, accumulated = Saliency(model), Saliency(model)
    with measured.measure():
        for x, y in data:
            F.cross_entropy(model(x), y).backward()
    for x, y in data:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        accumulated.accumulate()
    for name in measured.names:
        assert same_bytes(measured[name], accumulated[name])


def test_a7_accumulate_does_not_touch_gradients():
    weight = nn.Parameter(torch.zeros(5))
    weight.grad = grad = torch.randn(5)
    before = grad.clone()
    Saliency([("w", weight)]).accumulate()
    assert weight.grad is grad
    assert same_bytes(grad, before)


# --- A8: frozen, unused, shared, empty ------------------------------------------------------------


def test_a8_frozen_parameters_are_left_out_unused_ones_score_zero_shared_ones_count_once():
    model, data = awkward_model()
    saliency = Saliency.from_data(model, data, F.cross_entropy)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert saliency.names == list(trainable)
    assert not any(name.startswith(("frozen", "tied")) for name in saliency.names)
    assert saliency.numel == sum(p.numel() for p in trainable.values())
    assert not saliency["unused.weight"].any()
    assert saliency["empty"].shape == (0, 3)
    mask = saliency.mask(0.5)
    assert mask.count == int(saliency.numel * 0.5)
    mask.check(model)


def test_a8_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ValueError, match="found no parameter that requires a gradient"):
        Saliency(nn.Linear(2, 2).requires_grad_(False))


# --- A9: NaN and infinity -------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a9_mask_names_the_parameter_with_a_score_that_is_not_finite(bad: float):
    saliency = scores_of(torch.ones(3), torch.tensor([1.0, bad]), torch.ones(2))
    for options in ({}, {"which": "smallest"}, {"scope": "tensor"}):
        with pytest.raises(ValueError, match="'p1' holds NaN or infinity"):
            saliency.mask(0.5, **options)
    with pytest.raises(ValueError, match="'p1' holds NaN or infinity"):
        saliency.threshold(0.5)
    assert saliency.mask(0.5, exclude="p1").count == 2
    assert saliency.mask(0.5, which="random").count == 3
    assert saliency.mask(0.5, nonfinite="reference").count == 3


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a9_accumulate_names_the_parameter_and_adds_nothing(bad: float, dtype):
    parameters = {n: nn.Parameter(torch.zeros(40, dtype=dtype)) for n in ("a", "b", "c")}
    saliency = Saliency(parameters)
    for parameter in parameters.values():
        parameter.grad = torch.ones(40, dtype=dtype)
    saliency.accumulate()
    parameters["b"].grad[39] = bad
    with pytest.raises(ValueError, match="gradient of 'b' holds NaN or infinity; nothing was add"):
        saliency.accumulate()
    assert saliency.batches == 1
    assert all(torch.equal(saliency[name], torch.ones(40)) for name in parameters)


def test_a9_largest_finite_gradients_are_no_error():
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    weight.grad = torch.full((4,), 65504.0, dtype=torch.float16)
    saliency = Saliency([("w", weight)])
    saliency.accumulate()
    assert saliency["w"].tolist() == [65504.0] * 4


def test_a9_measure_names_the_parameter_and_scores_with_half_a_batch_are_refused():
    model, data = regression([4, 4])
    saliency = Saliency(model)
    with saliency.measure():
        F.mse_loss(model(data[0][0]), data[0][1]).backward()
        bad = F.mse_loss(model(data[1][0] * NAN), data[1][1])
        with pytest.raises(ValueError, match=r"batch 2: the gradient of '\d\.\w+' holds NaN"):
            bad.backward()
    for use in (lambda: saliency.mask(0.5), lambda: saliency.save("x"), saliency.accumulate):
        with pytest.raises(RuntimeError, match=r"batch 2.*Call reset\(\) and measure again"):
            use()
    saliency.reset()
    assert saliency.batches == 0
    with saliency.measure():
        F.mse_loss(model(data[0][0]), data[0][1]).backward()
    assert saliency.mask(0.5) == Saliency.from_data(model, data[:1], F.mse_loss).mask(0.5)


def test_a9_clipped_measure_adds_nothing_of_a_bad_batch():
    model, data = regression([4, 4])
    saliency = Saliency(model)
    with saliency.measure(clip_norm=1.0):
        F.mse_loss(model(data[0][0]), data[0][1]).backward()
        good = {name: saliency[name] for name in saliency.names}
        with pytest.raises(ValueError, match=r"batch 2: the gradient of '\d\.\w+' holds NaN"):
            F.mse_loss(model(data[1][0] * NAN), data[1][1]).backward()
    assert all(same_bytes(saliency[name], value) for name, value in good.items())
    assert saliency.mask(0.5).count == int(saliency.numel * 0.5)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        raise OSError("out of memory, say")


def failing_case() -> tuple[Saliency, Tensor, Tensor]:
    """Scores of two parameters, a loss that works, and one whose backward fails after the first."""
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    failing = (Failing.apply(early * 1) * late).sum()
    return Saliency([("early", early), ("late", late)]), early.sum() + late.sum(), failing


def test_backward_that_fails_midway_spoils_the_scores():
    saliency, good, failing = failing_case()
    with saliency.measure():
        good.backward()
        with pytest.raises(OSError, match="out of memory"):
            failing.backward()
    with pytest.raises(RuntimeError, match=r"batch 2 was interrupted in backward\(\)"):
        saliency.mask(0.5)


def test_backward_that_fails_midway_adds_nothing_when_clipped():
    saliency, good, failing = failing_case()
    with saliency.measure(clip_norm=10.0):
        good.backward(retain_graph=True)
        with pytest.raises(OSError, match="out of memory"):
            failing.backward()
        with pytest.raises(RuntimeError, match="clip_norm has no whole gradient"):
            good.backward()
    assert saliency["late"].tolist() == saliency["early"].tolist() == [1.0] * 3
    assert saliency.mask(0.5).count == 3


def test_checkpointed_activations_give_the_same_scores():
    model, data = regression([4, 4])
    expected = Saliency.from_data(model, data, F.mse_loss)
    for reentrant, clip_norm in ((True, None), (False, None), (False, 1e9)):
        saliency = Saliency(model)
        with saliency.measure(clip_norm=clip_norm):
            for x, y in data:
                hidden = checkpoint(model[:2], x.requires_grad_(), use_reentrant=reentrant)
                F.mse_loss(model[2](hidden), y).backward()
        assert all(same_bytes(saliency[name], expected[name]) for name in saliency.names)
    with (
        pytest.raises(RuntimeError, match="set use_reentrant=False"),
        saliency.measure(clip_norm=1),
    ):
        F.mse_loss(model[2](checkpoint(model[:2], x, use_reentrant=True)), y).backward()


# --- A10: clipping --------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [1.0, 0.05, 1e6])
def test_a10_each_batch_is_clipped_before_it_is_added(clip_norm: float):
    model, data = regression([4, 4, 4])
    measured = Saliency.from_data(model, data, F.mse_loss, clip_norm=clip_norm)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in data:
        grads = gradients(model, batch)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
        for name, grad in grads.items():
            expected[name] += grad * min(1.0, clip_norm / (norm + 1e-6))
    for name, value in expected.items():
        torch.testing.assert_close(measured[name], value.abs(), rtol=1e-5, atol=1e-8)


def test_a10_clipping_is_that_of_clip_grad_norm_to_the_bit():
    model, data = regression([4, 4])
    measured, by_hand = Saliency(model), Saliency(model)
    with measured.measure(clip_norm=0.1):
        for x, y in data:
            F.mse_loss(model(x), y).backward()
    for x, y in data:
        model.zero_grad()
        F.mse_loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        by_hand.accumulate()
    for name in measured.names:
        assert same_bytes(measured[name], by_hand[name])


# --- random masks, include and exclude ------------------------------------------------------------


def test_random_mask_is_repeatable_by_seed_and_needs_no_measuring():
    model, _ = regression([1])
    saliency = Saliency(model)
    mask = saliency.mask(0.4, which="random", seed=7)
    assert mask == Saliency(model).mask(0.4, which="random", seed=7)
    assert mask != saliency.mask(0.4, which="random", seed=8)
    assert mask.count == int(saliency.numel * 0.4)
    assert mask.score == "random, seed 7"
    state = torch.get_rng_state()
    saliency.mask(0.4, which="random")
    assert torch.equal(state, torch.get_rng_state())


def test_random_mask_is_uniform_over_weights():
    saliency = scores_of(torch.zeros(20), torch.zeros(5, 4))
    counts = sum(
        chosen(saliency.mask(0.25, which="random", seed=seed)).astype(int) for seed in range(2000)
    )
    assert counts.sum() == 2000 * 10
    # 500 +- 19.4 each; five of these deviations.
    assert abs(counts - 500).max() < 97


def test_excluded_parameters_stay_frozen_and_do_not_count():
    tensors = {n: torch.randn(100) for n in ("conv.weight", "conv.bias", "fc.weight", "fc.bias")}
    saliency = Saliency.from_dict(tensors)
    for options in ({"exclude": "*.bias"}, {"include": "*.weight"}, {"include": ["*.w*"]}):
        for which in ("largest", "smallest", "random"):
            mask = saliency.mask(0.5, which=which, **options)
            assert mask.count == 100
            assert mask.names == saliency.names
            assert not mask["conv.bias"].any()
            assert not mask["fc.bias"].any()
    alone = Saliency.from_dict({n: t for n, t in tensors.items() if n.endswith("weight")})
    expected = alone.mask(0.5)
    mask = saliency.mask(0.5, exclude="*.bias")
    assert all(torch.equal(mask[name], expected[name]) for name in expected)
    assert saliency.threshold(0.5, exclude="*.bias") == alone.threshold(0.5)
    per_tensor = saliency.mask(0.1, scope="tensor", include="fc.*").layer_densities()
    assert list(per_tensor.values()) == [0.0, 0.0, 0.1, 0.1]


def test_include_and_exclude_that_leave_nothing_or_match_nothing_are_errors():
    saliency = scores_of(torch.ones(3))
    with pytest.raises(ValueError, match="include and exclude leave no parameter"):
        saliency.mask(0.5, exclude="*")
    with pytest.raises(ValueError, match="include: 'q0' matches no parameter"):
        saliency.mask(0.5, include="q0")


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
def test_saved_scores_give_the_same_masks(tmp_path: Path, score: str):
    model, data = awkward_model()
    saliency = Saliency.from_data(model, data, F.cross_entropy, score=score)
    saliency.save(tmp_path / "scores")
    loaded = Saliency.load(tmp_path / "scores")
    assert (loaded.names, loaded.score, loaded.numel) == (saliency.names, score, saliency.numel)
    for name in saliency.names:
        assert same_bytes(loaded[name], saliency[name])
    for density in (0.1, 0.5, 1.0):
        assert loaded.mask(density) == saliency.mask(density)
        assert loaded.mask(density).score == score
    with pytest.raises(RuntimeError, match="given or loaded, so no gradients can be added"):
        loaded.accumulate()


def test_files_that_are_no_scores_are_one_clear_error(tmp_path: Path):
    path = tmp_path / "scores"
    scores_of(torch.ones(3)).mask(0.5).save(path)
    with pytest.raises(FileFormatError, match="expected a salun-fast saliency file, found a salun"):
        Saliency.load(path)
    tensors = {"w": torch.ones(2), "v": torch.ones(2)}
    for facts in ({"names": ["w"], "score": "x"}, {"names": ["u"], "score": "x"}, {"names": []}):
        files.save_tensors(path, tensors, kind="salun-fast saliency", version=1, facts=facts)
        with pytest.raises(FileFormatError, match=r"scores: its contents|scores: it holds"):
            Saliency.load(path)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0, 0.0, -0.1, 1.0000001, 2, 50, NAN, INF, True, "0.5", None])
def test_density_outside_zero_to_one_is_an_error(density):
    saliency = scores_of(torch.ones(3))
    for use in (saliency.mask, saliency.threshold):
        with pytest.raises(ValueError, match=r"density must be a number in \(0, 1\]"):
            use(density)


@pytest.mark.parametrize(
    ("option", "value"),
    [("scope", "layer"), ("which", "top"), ("nonfinite", "ignore"), ("which", None)],
)
def test_unknown_options_list_the_known_ones(option: str, value):
    with pytest.raises(ValueError, match=rf"{option} must be one of '.*, found {value!r}"):
        scores_of(torch.ones(3)).mask(0.5, **{option: value})


def test_unknown_score_and_weighting_list_the_known_ones():
    with pytest.raises(ValueError, match="score must be one of 'abs_of_sum', 'sum_of_abs', 'sum_o"):
        Saliency(nn.Linear(1, 1), score="fisher")
    with pytest.raises(ValueError, match="weighting must be one of 'batch', 'sample'"):
        Saliency.from_data(nn.Linear(1, 1), [], F.mse_loss, weighting="mean")


def test_nothing_measured_is_an_error():
    saliency = Saliency(nn.Linear(2, 2))
    with saliency.measure():
        pass
    for use in (lambda: saliency.mask(0.5), lambda: saliency.threshold(0.5)):
        with pytest.raises(RuntimeError, match=r"nothing was measured yet; .*forget set empty"):
            use()
    with pytest.raises(ValueError, match=r"no parameter has a gradient; call it after backward"):
        saliency.accumulate()


def test_empty_forget_set_is_an_error():
    with pytest.raises(ValueError, match="the loader gave no batch: the forget set is empty"):
        Saliency.from_data(nn.Linear(2, 2), [], F.mse_loss)


def test_batches_and_losses_of_another_form_are_errors():
    model, data = regression([4])
    with pytest.raises(
        TypeError, match=r"batch 1: expected a pair \(inputs, targets\), found dict"
    ):
        Saliency.from_data(model, [{"x": data[0][0]}], F.mse_loss)
    with pytest.raises(ValueError, match=r"must return the batch's mean loss.*found \[4, 3\]"):
        Saliency.from_data(model, data, lambda o, t: o - t)
    with pytest.raises(ValueError, match="the loss depends on no parameter"):
        Saliency.from_data(model, data, lambda o, t: (o.detach() - t).sum())


def test_sparse_and_complex_are_refused_by_name():
    embedding = nn.Embedding(5, 3, sparse=True)
    saliency = Saliency(embedding)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"gradient of 'weight' is torch.sparse_coo"):
        saliency.accumulate()
    embedding.weight.grad = None
    with pytest.raises(TypeError, match=r"gradient of 'weight' is"), saliency.measure():
        embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="'w': expected a dense real tensor, found torch.complex64"):
        Saliency([("w", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))])
    with pytest.raises(TypeError, match="'w': expected a dense real tensor, found list"):
        Saliency.from_dict({"w": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="expected at least one named score tensor"):
        Saliency.from_dict({})


def test_measuring_twice_at_once_and_bad_numbers_are_errors():
    saliency = Saliency(nn.Linear(2, 2))
    with saliency.measure():
        with pytest.raises(RuntimeError, match=r"measure\(\) is already active"):
            saliency.measure().__enter__()
        with pytest.raises(RuntimeError, match=r"leave measure\(\) before reset\(\)"):
            saliency.reset()
    with saliency.measure():
        pass
    for bad in (0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="clip_norm must be positive and finite"):
            saliency.measure(clip_norm=bad).__enter__()
        with pytest.raises(ValueError, match="weight must be positive and finite"):
            saliency.accumulate(weight=bad)


def test_scores_by_name_are_copies_found_under_prefixes():
    given = torch.tensor([-2.0, 1.0])
    saliency = Saliency.from_dict({"fc.weight": given}, score="snip")
    given[0] = 0
    values = saliency["module.fc.weight"]
    assert values.tolist() == [2.0, 1.0]
    values.zero_()
    assert saliency["fc.weight"].tolist() == [2.0, 1.0]
    with pytest.raises(KeyError, match=r"no scores for 'fc.bias'; they begin with 'fc.weight'"):
        saliency["fc.bias"]
    assert "snip" in repr(saliency)
    assert (
        saliency.mask(0.5, scope="tensor", which="smallest").score == "snip, smallest, per tensor"
    )


def test_progress_bar_changes_nothing(capsys):
    model, data = regression([4, 4])
    shown = Saliency.from_data(model, data, F.mse_loss, progress=True)
    assert shown.mask(0.5) == Saliency.from_data(model, data, F.mse_loss).mask(0.5)
    assert "Saliency" in capsys.readouterr().err
