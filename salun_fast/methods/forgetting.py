"""SalUn's objective for diffusion models, whether a class or a prompt is to be forgotten."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from salun_fast._eval_mode import eval_mode
from salun_fast.diffusion.denoising import PREDICTION_TYPES, guided_prediction, reduced
from salun_fast.diffusion.draws import generator_for
from salun_fast.diffusion.noisy import NoisyBatch, NoisyBatches
from salun_fast.methods.diffusion_settings import UnlearnSettings
from salun_fast.methods.step_loop import Loss

PROBED, MISFIT = 32, 3.0  # samples asked for the prediction type; how much better the other fits


class Forgetting(ABC):
    """‖ε(x_t, t, c_f) − stopgrad ε(x_t, t, c')‖² on forget samples plus α times the denoising loss
    on retain samples (SalUn, eq. 7); and the loss whose gradient is the saliency.

    A condition is what the network takes beside x_t and t: labels [b] or prompt embeddings
    [b, length, width]. forget_reduction, saliency_reduction: as ``reduced`` takes them.
    """

    def __init__(
        self,
        settings: UnlearnSettings,
        noisy: NoisyBatches,
        *,
        forget_reduction: str,
        saliency_reduction: str,
    ) -> None:
        self.settings, self.noisy = settings, noisy
        self._reductions = forget_reduction, saliency_reduction
        self._batches = noisy.sequence()

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """What the network says, [b, c, h, w]."""

    @abstractmethod
    def forgotten(self, batch: NoisyBatch) -> Tensor:
        """The condition to be forgotten."""

    @abstractmethod
    def nothing(self, batch: NoisyBatch) -> Tensor:
        """The condition ∅ that guidance starts from."""

    @abstractmethod
    def taught(self, batch: NoisyBatch) -> Tensor:
        """What the network should say instead: its own prediction for the replacement."""

    @abstractmethod
    def retained(self, number: int) -> Tensor:
        """The denoising loss of retain batch ``number``, 0-dim."""

    def __call__(self, number: int) -> Loss:
        batch = self._batches(number)
        with torch.no_grad():
            taught = self.taught(batch)
        forget = reduced(self._said(batch), taught, self._reductions[0])
        retain = self.retained(number)
        parts = {"forget": forget.detach(), "retain": retain.detach()}
        return Loss(forget + self.settings.alpha * retain, parts)

    def ascent(self, number: int) -> Loss:
        """Gradient ascent on the forget samples' denoising loss, mean over elements."""
        batch = self._batches(number)
        loss = reduced(self._said(batch), batch.target, "mean")
        return Loss(-loss, {"forget": loss.detach()})

    def saliency_losses(self) -> Iterator[Tensor]:
        """Per batch of one pass: the denoising loss of the guided prediction."""
        for batch in self.noisy.one_pass():
            yield reduced(self._guided(batch), batch.target, self._reductions[1])

    @torch.no_grad()
    def check_prediction(self, unet: nn.Module) -> None:
        """Raise ValueError where the network plainly predicts something else than its scheduler
        says: noise instead of velocity, or the other way round. An untrained one fits neither."""
        denoising, indices = self.noisy.denoising, torch.arange(min(self.noisy.count, PROBED))
        batch = self.noisy.draw(indices, -1)
        clean = self.noisy.clean(indices, generator_for(self.noisy.seed, "probe"))
        with eval_mode(unet):
            said = self._said(batch)
        fits = {}
        for kind in PREDICTION_TYPES:
            target = denoising.target_of(kind, clean, batch.noise, batch.timesteps)
            fits[kind] = float(reduced(said, target, "mean"))
        declared = fits.pop(denoising.prediction_type)
        other, error = fits.popitem()
        if error * MISFIT < declared:
            raise ValueError(
                f"scheduler.config.prediction_type is {denoising.prediction_type!r}, but what the "
                f"UNet says fits {other!r} (mean squared error {error:.3g} against "
                f"{declared:.3g}); pass the scheduler that it was trained with"
            )

    def _said(self, batch: NoisyBatch) -> Tensor:
        return self.predict(batch.noisy, batch.timesteps, self.forgotten(batch))

    def _guided(self, batch: NoisyBatch) -> Tensor:
        """Both halves in one call: of two, autograd would keep all gradients of the first until
        the second has its own."""
        guidance = self.settings.saliency_guidance
        if not guidance:
            return self._said(batch)
        both = torch.cat([self.forgotten(batch), self.nothing(batch)])
        said = self.predict(batch.noisy.repeat(2, 1, 1, 1), batch.timesteps.repeat(2), both)
        conditional, unconditional = said.chunk(2)
        return guided_prediction(conditional, unconditional, guidance)
