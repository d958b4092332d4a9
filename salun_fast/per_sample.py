"""Per-sample saliency: Σ_i |∇_W ℓ_i| over samples i, without any gradient of a sample in memory.

A batch's gradient is a sum over samples, in which opposite ones cancel; here the magnitude is taken
of each sample's own. Every layer kind has a rule: from its input and the gradient of its output it
tells the gradient of the input, as autograd does, and per parameter a :class:`Term`, which can add
its magnitudes to a score. The first dimension of an input is the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from salun_fast import ops

_aten = torch.ops.aten
_CHUNK = 1 << 22  # numbers that are worked on at a time where a rule needs copies


class Term(Protocol):
    """What one use of a parameter adds to the gradients of the samples."""

    def add_to(self, score: Tensor, scale: float) -> None:
        """score += scale Σ_i |gradient of sample i|."""

    def gradient(self, sample: int) -> Tensor:
        """Of one sample, fp32, in the shape of the parameter."""


class Explicit(NamedTuple):
    """Gradients of all samples, where they are no more than the layer's output: [samples, ...]."""

    gradients: Tensor

    def add_to(self, score: Tensor, scale: float) -> None:
        score.add_(self.gradients.abs().sum(0), alpha=scale)

    def gradient(self, sample: int) -> Tensor:
        return self.gradients[sample]


class Outer(NamedTuple):
    """A linear layer on vectors: g_i x_iᵀ, of magnitude |g_i| |x_i|ᵀ: one product for all."""

    grads: Tensor  # [samples, outputs]
    inputs: Tensor  # [samples, inputs]

    def add_to(self, score: Tensor, scale: float) -> None:
        score.addmm_(self.grads.float().abs().t(), self.inputs.float().abs(), alpha=scale)

    def gradient(self, sample: int) -> Tensor:
        return torch.outer(self.grads[sample].float(), self.inputs[sample].float())


class Convolved(NamedTuple):
    """A convolution in two dimensions, or what is one: [samples, channels, height, width]."""

    grads: Tensor
    inputs: Tensor
    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0)
    dilation: Sequence[int] = (1, 1)
    groups: int = 1
    shape: Sequence[int] = ()  # of the weight

    def add_to(self, score: Tensor, scale: float) -> None:
        planes = score if score.dim() == 4 else score.view(self._planes)
        ops.per_sample_(
            planes,
            self.grads,
            self.inputs,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            scale=scale,
        )

    def gradient(self, sample: int) -> Tensor:
        one = slice(sample, sample + 1)
        grads, inputs = self.grads[one].float(), self.inputs[one].float()
        window = (self.stride, self.padding, self.dilation, self.groups)
        planes: Tensor = conv2d_weight(inputs, self._planes, grads, *window)  # type: ignore[no-untyped-call]
        return planes.view(tuple(self.shape))

    @property
    def _planes(self) -> list[int]:
        """The weight's shape with both dimensions of its window: of a sequence, the second."""
        outputs, inputs, *window = self.shape
        return [outputs, inputs, *[1] * (2 - len(window)), *window]


class Looked(NamedTuple):
    """Rows of an embedding, which tokens look up."""

    tokens: Tensor  # [samples, length]
    grads: Tensor  # [samples, length, width]
    rows: int

    def add_to(self, score: Tensor, scale: float) -> None:
        samples = torch.arange(len(self.tokens), device=self.tokens.device)
        places = (samples[:, None] * self.rows + self.tokens).flatten()
        own, inverse = torch.unique(places, return_inverse=True)
        sums = self.grads.new_zeros((len(own), score.shape[1]), dtype=torch.float32)
        sums.index_add_(0, inverse, self.grads.flatten(0, 1).float())
        score.index_add_(0, own % self.rows, sums.abs_(), alpha=scale)

    def gradient(self, sample: int) -> Tensor:
        whole = self.grads.new_zeros((self.rows, self.grads.shape[-1]), dtype=torch.float32)
        return whole.index_add_(0, self.tokens[sample], self.grads[sample].float())


Terms = dict[str, Term]
# (layer, its input, the gradient of its output, whether the input needs one) -> that, and terms.
Rule = Callable[[Any, Tensor, Tensor, bool], tuple[Tensor | None, Terms]]


def add_all(terms: Sequence[Term], score: Tensor, scale: float, samples: int) -> None:
    """The uses of one parameter in one backward; magnitudes come after their sum, per sample."""
    if len(terms) == 1:
        terms[0].add_to(score, scale)
        return
    for sample in range(samples):
        total = terms[0].gradient(sample).clone()
        for term in terms[1:]:
            total += term.gradient(sample)
        score.add_(total.abs_(), alpha=scale)


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a layer, or None: of another kind, or its forward is another one."""
    if "forward" in vars(module) or module._parameters.get("weight") is None:
        return None
    for kind, rule in _RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule if _is_plain(module) else None
    return None


def refuse_mixing(name: str, module: nn.Module) -> None:
    """ValueError for batch norm that computes statistics of the batch: samples have no gradients
    of their own then."""
    if isinstance(module, _BATCH_NORMS) and (module.training or module.running_mean is None):
        raise ValueError(
            f"score 'per_sample': {name!r} is a batch norm that takes its statistics from the "
            "batch, so that no sample has a gradient of its own; expected eval mode with running "
            "statistics. Call model.eval() first"
        )


# --- rules ----------------------------------------------------------------------------------------


def _linear(layer: nn.Linear, x: Tensor, grad: Tensor, needs_input: bool) -> Any:
    back = grad @ layer.weight.to(grad.dtype) if needs_input else None
    if x.dim() == 2:
        weight: Term = Outer(grad, x)
    else:
        grads, inputs = (t.flatten(1, -2).transpose(1, 2).unsqueeze(2) for t in (grad, x))
        weight = Convolved(grads, inputs, shape=layer.weight.shape)
    return back, _terms(layer, weight, grad, range(1, grad.dim() - 1))


def _conv(layer: nn.Conv1d | nn.Conv2d, x: Tensor, grad: Tensor, needs_input: bool) -> Any:
    window = (layer.stride, _padding(layer), layer.dilation)
    back = None
    if needs_input:
        flags = [True, False, False]
        other = (x.to(grad.dtype), layer.weight.to(grad.dtype), None)
        rest = (False, [0] * len(layer.stride), layer.groups, flags)
        back = _aten.convolution_backward(grad, *other, *window, *rest)[0]
    grads, inputs = grad, x
    if x.dim() == 3:  # a sequence: an image of height 1
        grads, inputs = grad.unsqueeze(2), x.unsqueeze(2)
        window = ((1, *layer.stride), (0, *window[1]), (1, *layer.dilation))
    weight = Convolved(grads, inputs, *window, layer.groups, layer.weight.shape)
    return back, _terms(layer, weight, grad, range(2, grad.dim()))


def _embedding(layer: nn.Embedding, tokens: Tensor, grad: Tensor, needs_input: bool) -> Any:
    tokens = tokens.reshape(len(tokens), -1)
    grads = grad.reshape(*tokens.shape, grad.shape[-1])
    if layer.padding_idx is not None:
        grads = grads.masked_fill((tokens == layer.padding_idx).unsqueeze(-1), 0)
    return None, {"weight": Looked(tokens, grads, layer.num_embeddings)}


def _layer_norm(layer: nn.LayerNorm, x: Tensor, grad: Tensor, needs_input: bool) -> Any:
    wide, grads = x.float(), grad.float()
    shape, weight = list(layer.normalized_shape), layer.weight.float()
    _, mean, rstd = torch.native_layer_norm(wide, shape, None, None, layer.eps)
    back = None
    if needs_input:
        flags = [True, False, False]
        back = _aten.native_layer_norm_backward(
            grads, wide, shape, mean, rstd, weight, None, flags
        )[0]
    places = range(1, x.dim() - len(shape))
    product = _chunked(lambda g, x, m, r: _over_places(g * ((x - m) * r), places).gradients)
    scaled = Explicit(product(grads, wide, mean, rstd))
    return back, _terms(layer, scaled, grads, places)


def _group_norm(layer: nn.GroupNorm, x: Tensor, grad: Tensor, needs_input: bool) -> Any:
    wide, grads = x.float().contiguous(), grad.float().contiguous()
    samples, channels = x.shape[:2]
    sizes = (samples, channels, x[0, 0].numel(), layer.num_groups)
    _, mean, rstd = torch.native_group_norm(wide, None, None, *sizes, layer.eps)
    back = None
    if needs_input:
        flags = [True, False, False]
        back = _aten.native_group_norm_backward(
            grads, wide, mean, rstd, layer.weight.float(), *sizes, flags
        )[0]

    def product(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        groups = x.reshape(len(x), layer.num_groups, -1)
        normal = (groups - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
        return (normal.view(x.shape) * g).flatten(2).sum(-1)

    scaled = Explicit(_chunked(product)(grads, wide, mean, rstd))
    return back, _terms(layer, scaled, grads, range(2, x.dim()))


def _batch_norm(layer: Any, x: Tensor, grad: Tensor, needs_input: bool) -> Any:
    wide, grads = x.float(), grad.float()
    statistics = (layer.running_mean.float(), layer.running_var.float())
    back = None
    if needs_input:
        options = (None, None, False, layer.eps, [True, False, False])
        back = _aten.native_batch_norm_backward(
            grads, wide, layer.weight.float(), *statistics, *options
        )[0]
    column = (-1, *[1] * (x.dim() - 2))
    mean, deviation = statistics[0].view(column), (statistics[1] + layer.eps).sqrt()
    places = range(2, x.dim())
    product = _chunked(lambda g, x: _over_places(g * (x - mean), places).gradients)
    scaled = Explicit(product(grads, wide) / deviation)
    return back, _terms(layer, scaled, grads, places)


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RULES: dict[Any, Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
}


# --- what rules share -----------------------------------------------------------------------------


def _is_plain(module: nn.Module) -> bool:
    """Without the options that no rule knows."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return module.padding_mode == "zeros" and _padding(module) is not None
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq
    return True


def _padding(layer: nn.Conv1d | nn.Conv2d) -> Any:
    """As numbers; None where the two ends of "same" padding differ."""
    if layer.padding == "valid":
        return (0,) * len(layer.stride)
    if layer.padding != "same":
        return layer.padding
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return None if any(span % 2 for span in spans) else tuple(span // 2 for span in spans)


def _terms(layer: Any, weight: Term, grad: Tensor, places: Sequence[int]) -> Terms:
    """With that of the bias, which is added at every place."""
    return {"weight": weight} | ({} if layer.bias is None else {"bias": _over_places(grad, places)})


def _over_places(grad: Tensor, places: Sequence[int]) -> Explicit:
    grad = grad.float()
    return Explicit(grad.sum(tuple(places)) if len(places) else grad)


def _chunked(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``make`` on some samples at a time, so that what it computes on the way stays small."""

    def call(*tensors: Tensor) -> Tensor:
        some = max(1, _CHUNK // max(1, tensors[0][0].numel())) if len(tensors[0]) else 1
        parts = zip(*(torch.split(tensor, some) for tensor in tensors), strict=True)
        return torch.cat([make(*part) for part in parts])

    return call
