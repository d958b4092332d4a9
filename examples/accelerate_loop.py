"""Hugging Face accelerate: `accelerate launch examples/accelerate_loop.py`, or plain `python`.

Keep the optimizer you made: `measure_saliency` and `select` are its own. What `prepare` returns
wraps it and steps it.
"""

from __future__ import annotations

import copy
from pathlib import Path

import digits
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader

from salun_fast import SalUnOptimizer


def main(folder: Path = Path("runs/accelerate")) -> digits.Result:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    data = digits.load()
    model = digits.trained(data)
    before = copy.deepcopy(model)

    salun = SalUnOptimizer(model.named_parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    model, optimizer, forget_loader, loader = accelerator.prepare(
        model,
        salun,
        DataLoader(data.forget, batch_size=32),
        DataLoader(data.unlearn, batch_size=32, shuffle=True),
    )

    with salun.measure_saliency():
        for x, y in forget_loader:
            accelerator.backward(F.cross_entropy(model(x), y))
    salun.select(digits.DENSITY)  # adds up the processes' scores, where there are several

    def epoch() -> None:
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    epoch()
    accelerator.save_state(folder)  # weights, the optimizer's state and the mask
    salun.set_mask(None)  # lost, as after a crash
    accelerator.load_state(folder)
    for _ in range(3):
        epoch()
    after = accelerator.unwrap_model(model)
    return digits.report(data, before, after, salun.mask)


if __name__ == "__main__":
    main()
