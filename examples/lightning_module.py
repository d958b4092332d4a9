"""Lightning: `python examples/lightning_module.py`.

The module knows of SalUn in one place, `configure_optimizers`. Saliency belongs to the original
weights, so it is measured before `fit`; a fit that goes on takes the mask from its checkpoint.
"""

from __future__ import annotations

import copy
from pathlib import Path

import digits
import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from salun_fast import Saliency, SaliencyMask, SalUnOptimizer


class Unlearning(lightning.LightningModule):
    def __init__(self, net: nn.Module, mask: SaliencyMask | None = None) -> None:
        super().__init__()
        self.net = net
        self.mask = mask

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> SalUnOptimizer:
        # fused=False: Lightning clips under mixed precision, so unscaling is not left to the step.
        return SalUnOptimizer(
            self.net.named_parameters(), torch.optim.AdamW, mask=self.mask, lr=3e-3, fused=False
        )


def main(
    folder: Path = Path("runs/lightning"), resume_from: Path | None = None, precision="bf16-mixed"
) -> digits.Result:
    data = digits.load()
    before = digits.trained(data)
    module = Unlearning(copy.deepcopy(before))
    if resume_from is None:
        saliency = Saliency.from_data(module.net, DataLoader(data.forget, 32), F.cross_entropy)
        module.mask = saliency.mask(digits.DENSITY)

    trainer = lightning.Trainer(
        max_epochs=4,
        precision=precision,
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(data.unlearn, batch_size=32, shuffle=True)
    trainer.fit(module, loader, ckpt_path=resume_from)
    return digits.report(data, before, module.net.cpu(), trainer.optimizers[0].mask)


if __name__ == "__main__":
    main()
