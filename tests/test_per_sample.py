"""Saliency(score="per_sample"): Σ_i |∇ℓ_i| of whole models, against one backward per sample."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from salun_fast import Saliency, SalUnOptimizer, models
from salun_fast._per_sample_fallback import PerSampleFallbackWarning

Scores = dict[str, Tensor]


def one_by_one(model: nn.Module, x: Tensor, y: Tensor, loss_fn=F.cross_entropy) -> Scores:
    """A backward per sample, the magnitudes added up."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}
    for i in range(len(x)):
        loss = loss_fn(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        for name, own in zip(params, grads, strict=True):
            if own is not None:
                sums[name] += own.abs()
    return sums


def measured(model: nn.Module, x: Tensor, y: Tensor, loss_fn=F.cross_entropy) -> Saliency:
    saliency = Saliency(model, score="per_sample")
    with saliency.measure():
        loss_fn(model(x), y).backward()
    return saliency


def assert_close(saliency: Saliency, expected: Scores) -> None:
    """To 1e-5 of each parameter's largest score; of the model's where it is 0 but for rounding (the
    bias of attention's keys)."""
    assert saliency.names == list(expected)
    most = max(float(scores.max()) for scores in expected.values())
    for name, scores in expected.items():
        allowed = 1e-5 * max(float(scores.max()), 1e-3 * most)
        assert float((saliency[name] - scores).abs().max()) <= allowed, name


def labels(count: int, classes: int = 10) -> Tensor:
    return torch.arange(count) * 7 % classes


class Sequence(nn.Module):
    """Convolutions over time in every option, and norms; in-place steps between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 5, stride=2, padding=2, dilation=2)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv1d(8, 8, 3, padding="same", groups=4, bias=False)
        self.batch = nn.BatchNorm1d(8)
        self.layer = nn.LayerNorm(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        x = self.batch(self.second(x)).transpose(1, 2)
        return self.head(torch.tanh_(self.layer(x))).mean(1)


class Shared(nn.Module):
    """Words: an embedding that is the head's weight too, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=3)
        self.twice = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.twice(torch.tanh(self.twice(self.embedding(tokens))))
        return self.head(h).mean(1)


class Block(nn.Module):
    """A ViT block of nn.Linear, which rules know to the last weight."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.after(x))))
        return self.head(x.mean(1))


class Direct(nn.Module):
    """Parameters that no layer owns, and torch's own attention, which does not call its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def unet() -> nn.Module:
    from diffusers import UNet2DModel

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = UNet2DModel(
                sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 32),
                layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8,
                attention_head_dim=8, num_class_embeds=11,
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            classes = torch.zeros(len(x), dtype=torch.long)
            return self.unet(x, torch.full((len(x),), 7), class_labels=classes).sample

    return Denoiser()


def problem(kind: str):
    torch.manual_seed(0)
    if kind == "resnet":
        return models.build("resnet18", 10, width=8).eval(), torch.randn(4, 3, 16, 16), labels(4)
    if kind == "unet":
        return unet().eval(), torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), F.mse_loss
    if kind == "words":
        return Shared(), torch.arange(28).view(4, 7) * 3 % 20, labels(4, 20)
    if kind == "sequence":
        return Sequence().eval(), torch.randn(4, 3, 30), labels(4)
    return Block(), torch.randn(4, 9, 32), labels(4)


@pytest.mark.parametrize("kind", ["resnet", "unet", "words", "sequence", "block"])
def test_scores_are_those_of_one_backward_per_sample_and_no_layer_lacks_a_rule(kind):
    model, *batch = problem(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerSampleFallbackWarning)
        saliency = measured(model, *batch)
    assert_close(saliency, one_by_one(model, *batch))
    assert saliency.batches == 1


def test_scores_are_those_of_torch_func():
    model, x, y = problem("resnet")
    params = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (params, buffers), (x[None],)), y[None])

    grads = vmap(grad(loss), (None, 0, 0))(params, x, y)
    assert_close(measured(model, x, y), {name: own.abs().sum(0) for name, own in grads.items()})


def test_what_has_no_rule_goes_through_torch_func_and_that_is_said_once():
    torch.manual_seed(0)
    model, x, y = Direct(), torch.randn(4, 5, 16), labels(4)
    saliency = Saliency(model, score="per_sample")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with saliency.measure():
            F.cross_entropy(model(x), y).backward()
            F.cross_entropy(model(x), y).backward()
    assert "no rule for 5 parameters" in str(told[0].message)
    assert len([w for w in told if w.category is PerSampleFallbackWarning]) == 1
    assert not any(saliency[name].requires_grad for name in saliency.names)
    twice = {name: 2 * scores for name, scores in one_by_one(model, x, y).items()}
    assert_close(saliency, twice)


def test_batches_of_any_size_count_every_sample_alike():
    model, x, y = problem("block")
    saliency = Saliency(model, score="per_sample")
    with saliency.measure():
        for part in (slice(0, 3), slice(3, 4)):
            F.cross_entropy(model(x[part]), y[part]).backward()
    assert_close(saliency, one_by_one(model, x, y))
    summed = Saliency(model, score="per_sample")
    with summed.measure(loss_reduction="sum"):
        F.cross_entropy(model(x), y, reduction="sum").backward()
    assert_close(summed, one_by_one(model, x, y))


def test_the_gradient_that_goes_on_is_that_of_autograd():
    """Layers compute no gradient of their own parameters; that of their input is the same."""
    for kind in ("resnet", "sequence", "block"):
        model, x, y = problem(kind)
        x.requires_grad_()
        plain = torch.autograd.grad(F.cross_entropy(model(x), y), x)[0]
        saliency = Saliency(model, score="per_sample")
        with saliency.measure():
            F.cross_entropy(model(x), y).backward()
        torch.testing.assert_close(x.grad, plain, rtol=1e-4, atol=1e-7)


def test_model_and_gradients_are_left_as_they_were():
    model, x, y = problem("resnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = torch.ones_like(model.fc.weight)
    model.fc.weight.grad = kept
    expected = model(x).detach()
    measured(model, x, y)
    assert model.fc.weight.grad is kept
    assert all(p.grad is None for p in model.parameters() if p is not model.fc.weight)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())
    assert torch.equal(model(x), expected)
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_parameters_and_unused_ones():
    model, x, y = problem("block")
    model.qkv.weight.requires_grad_(False)
    model.down.bias.requires_grad_(False)
    model.unused = nn.Linear(3, 3)
    saliency = measured(model, x, y)
    assert "qkv.weight" not in saliency.names
    assert not bool(saliency["unused.weight"].any())
    assert_close(saliency, one_by_one(model, x, y))


def test_activation_checkpoints_and_their_refusal():
    model, x, y = problem("block")
    expected = one_by_one(model, x, y)
    for reentrant in (False, True):
        saliency = Saliency(model, score="per_sample")
        wrapped = x.clone().requires_grad_()

        def run(saliency=saliency, wrapped=wrapped, reentrant=reentrant) -> None:
            with saliency.measure():
                out = checkpoint(model, wrapped, use_reentrant=reentrant)
                F.cross_entropy(out, y).backward()

        if reentrant:
            with pytest.raises(RuntimeError, match="use_reentrant=False"):
                run()
        else:
            run()
            assert_close(saliency, expected)


def test_autocast_scores_in_fp32():
    model, x, y = problem("resnet")
    saliency = Saliency(model, score="per_sample")
    with saliency.measure(), torch.autocast("cpu", dtype=torch.bfloat16):
        F.cross_entropy(model(x), y).backward()
    exact = measured(model, x, y)
    for name in saliency.names:
        wide, scores = exact[name].flatten(), saliency[name].flatten()
        assert scores.dtype == torch.float32
        assert float(F.cosine_similarity(wide, scores, dim=0)) > 0.97, name


def test_from_data_and_the_optimizer_take_it():
    model, x, y = problem("resnet")
    expected = one_by_one(model, x, y)
    loader = [(x[:3], y[:3]), (x[3:], y[3:])]
    for weighting in ("batch", "sample"):
        made = Saliency.from_data(
            model, loader, F.cross_entropy, score="per_sample", weighting=weighting
        )
        assert_close(made, expected)
    optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1)
    with optimizer.measure_saliency("per_sample", module=model) as saliency:
        F.cross_entropy(model(x), y).backward()
    assert_close(saliency, expected)
    assert optimizer.select(0.3).count == int(0.3 * saliency.numel)


def test_nan_is_refused_by_name():
    model, x, y = problem("block")
    saliency = Saliency(model, score="per_sample")
    with (
        pytest.raises(ValueError, match="batch 1: the gradient of '.*' holds NaN"),
        saliency.measure(),
    ):
        (F.cross_entropy(model(x), y) * torch.nan).backward()
    with pytest.raises(RuntimeError, match="reset"):
        saliency.mask(0.5)


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.layer(x), self.layer.weight)


class Turned(nn.Module):
    """The batch is the second dimension of what the layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).mean(0)


def test_a_layer_that_sees_the_batch_elsewhere_is_left_to_torch_func():
    torch.manual_seed(0)
    model, x, y = Turned(), torch.randn(3, 5, 4), labels(3)
    with pytest.warns(PerSampleFallbackWarning):
        saliency = measured(model, x, y)
    assert_close(saliency, one_by_one(model, x, y))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Saliency(nn.Linear(2, 2).named_parameters(), score="per_sample"), "the module"),
        (
            lambda: Saliency(
                nn.Linear(2, 2).named_parameters(), score="per_sample", module=nn.Linear(2, 2)
            ),
            "no parameter of the module",
        ),
        (lambda: Saliency(torch.compile(nn.Linear(2, 2)), score="per_sample"), "_orig_mod"),
        (lambda: Saliency(nn.Linear(2, 2), score="per_sample").accumulate(), "use measure"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_refusals_while_measuring():
    model, x, y = problem("resnet")
    saliency = Saliency(model, score="per_sample")
    for words, options in (
        ("clip_norm: expected None", {"clip_norm": 1.0}),
        ("loss_reduction must be one of", {"loss_reduction": "none"}),
    ):
        with pytest.raises(ValueError, match=words), saliency.measure(**options):
            pass
    with pytest.raises(ValueError, match=r"'bn1' is a batch norm.*model.eval"):
        measured(model.train(), x, y)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_parameter_used_by_its_layer_and_beside_it_is_refused():
    with pytest.raises(RuntimeError, match="'layer.weight' is used by its layer and once more"):
        measured(Beside(), torch.randn(3, 4), labels(3, 4))
