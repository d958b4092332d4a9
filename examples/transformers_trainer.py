"""The Trainer of Hugging Face transformers: `python examples/transformers_trainer.py`.

A small GPT-2 has learnt where forty people live. It is to forget eight of them. The Trainer takes
the optimizer as it is; schedule, clipping and checkpoints, mask included, are the Trainer's work.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import digits
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from salun_fast import SalUnOptimizer

PEOPLE, CITIES, FORGOTTEN = 40, 12, 8
LIVES_IN = PEOPLE + CITIES  # the token between a person and a city


def facts(seed: int) -> Tensor:
    """int64 [PEOPLE, 3]: a person, "lives in", a city."""
    people = torch.arange(PEOPLE)
    cities = torch.randint(CITIES, (PEOPLE,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([people, torch.full_like(people, LIVES_IN), PEOPLE + cities], dim=1)


def trainer(
    model: Any, rows: Tensor, optimizer: SalUnOptimizer | None = None, **options
) -> Trainer:
    quiet = {"logging_strategy": "no", "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(per_device_train_batch_size=20, **quiet, **options)
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    return Trainer(model, arguments, train_dataset=dataset, optimizers=(optimizer, None))


@torch.no_grad()
def recall(model: Any, truth: Tensor) -> tuple[float, float]:
    """Of how many people the model names the city, in percent: of the forgotten, of the others."""
    right = (model.cpu().eval()(truth).logits[:, 1].argmax(1) == truth[:, 2]).float() * 100
    return right[:FORGOTTEN].mean().item(), right[FORGOTTEN:].mean().item()


def main(folder: Path = Path("runs/trainer"), resume_from: Path | None = None) -> digits.Result:
    torch.manual_seed(0)
    tokens = {"vocab_size": LIVES_IN + 1, "bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(
        **tokens, n_positions=4, n_embd=48, n_layer=2, n_head=2, initializer_range=0.1
    )
    model = GPT2LMHeadModel(config)
    truth = facts(seed=1)
    trainer(model, truth, output_dir=folder, max_steps=150, learning_rate=4e-3,
            save_strategy="no").train()  # fmt: skip
    before = copy.deepcopy(model)

    optimizer = SalUnOptimizer(model.named_parameters(), torch.optim.AdamW, lr=2e-3)
    forget = truth[:FORGOTTEN].to(model.device)
    model.eval()
    with optimizer.measure_saliency():
        model(forget, labels=forget).loss.backward()
    optimizer.select(digits.DENSITY)

    taught = torch.cat([facts(seed=2)[:FORGOTTEN], truth[FORGOTTEN:]])  # elsewhere, at random
    unlearning = trainer(model, taught, optimizer, output_dir=folder, max_steps=60, save_steps=20)
    unlearning.train(resume_from_checkpoint=resume_from)
    return digits.compare(
        recall(before, truth), recall(model, truth), before, model, optimizer.mask
    )


if __name__ == "__main__":
    main()
