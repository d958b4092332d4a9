"""The Trainer of transformers: its schedule, clipping, accumulation and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import NonfiniteGradientError, SalUnOptimizer
from tests.conftest import same_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")

SGD = {"lr": 0.3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
ADAMW = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}


def network() -> nn.Module:
    """With dropout: a resumed run must draw what the uninterrupted one does."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=8, num_labels=3,
        )
    )  # fmt: skip


def texts() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(20, (6,), generator=generator),
            "labels": torch.randint(3, (), generator=generator),
        }
        for _ in range(24)
    ]


def half_of(net: nn.Module) -> SaliencyMask:
    generator = torch.Generator().manual_seed(2)
    return SaliencyMask.from_dict(
        {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in net.named_parameters()}
    )


def train(
    net: nn.Module, optimizer: Any, folder: Path, *, resume: Path | None = None, **options: Any
) -> Trainer:
    """Six steps with a linear schedule and a saved state after three."""
    arguments = TrainingArguments(
        output_dir=folder, max_steps=6, save_steps=3, per_device_train_batch_size=4,
        use_cpu=True, logging_strategy="no", report_to=[], disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = Trainer(net, arguments, train_dataset=texts(), optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert same_bytes(a, b), name


@pytest.mark.parametrize(
    "options",
    [{}, {"max_grad_norm": 0.1, "gradient_accumulation_steps": 2, "bf16": True}],
    ids=["plain", "clipped-accumulated-bf16"],
)
def test_without_a_mask_a_run_has_the_bits_of_torchs_optimizer(options, tmp_path):
    ours, theirs = network(), network()
    salun = SalUnOptimizer(ours.named_parameters(), torch.optim.SGD, **SGD)
    trainer = train(ours, salun, tmp_path / "ours", **options)
    train(theirs, torch.optim.SGD(theirs.parameters(), **SGD), tmp_path / "theirs", **options)
    assert_same_weights(ours, theirs)
    assert salun.param_groups[0]["lr"] == trainer.lr_scheduler.get_last_lr()[0] == 0.0


def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one_mask_included(tmp_path):
    whole = network()
    mask = half_of(whole)
    expected = SalUnOptimizer(whole.named_parameters(), torch.optim.AdamW, mask=mask, **ADAMW)
    train(whole, expected, tmp_path)
    for (name, now), original in zip(whole.named_parameters(), network().parameters(), strict=True):
        assert same_bytes(now[~mask[name]], original[~mask[name]]), name
    assert not torch.equal(whole.classifier.weight, network().classifier.weight)

    resumed = network()
    optimizer = SalUnOptimizer(resumed.named_parameters(), torch.optim.AdamW, **ADAMW)
    train(resumed, optimizer, tmp_path, resume=tmp_path / "checkpoint-3")
    assert optimizer.mask == mask
    assert_same_weights(resumed, whole)
    for left, right in zip(optimizer.state.values(), expected.state.values(), strict=True):
        assert all(same_bytes(left[key], right[key]) for key in right)


def test_a_gradient_that_is_nan_stops_the_run_with_nothing_changed(tmp_path):
    net = network()
    optimizer = SalUnOptimizer(
        net.named_parameters(), torch.optim.AdamW, mask=half_of(net), error_if_nonfinite=True
    )
    net.bert.pooler.dense.weight.register_hook(lambda grad: grad * float("nan"))
    # The Trainer takes the norm of all gradients and scales by it, so by now all of them are NaN.
    with pytest.raises(NonfiniteGradientError, match="where weights would move"):
        train(net, optimizer, tmp_path)
    assert_same_weights(net, network())
