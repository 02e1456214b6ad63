"""How much of a chunk and how much noise is in a noisy one, step by step: the schedules of `diffusers`.

Its schedulers wait for the device in each step and draw from torch's generator; so their tables are taken, and the
arithmetic (Ho et al. 2020; Song et al. 2021) is here. The tests compare it with theirs.
"""

from __future__ import annotations

import math

import torch

from ppt_kit.errors import UserError
from ppt_kit.models.affine import Exact
from ppt_kit.models.heads.options import one_of

PREDICTIONS = ("epsilon", "sample", "v")
BETAS = ("squaredcos_cap_v2", "linear", "scaled_linear")


class Schedule(Exact):
    """Of training step t in 0 … num_train_steps - 1: noisy = sqrt(a_t) clean + sqrt(1 - a_t) noise.

    Args:
        betas: the schedule, as diffusers names it.
        prediction: what the network gives: the noise ("epsilon"), the chunk ("sample"), or "v" (Salimans & Ho 2022).
        clip: least and greatest normalised number of a chunk, -clip and clip; None = there are none.
    Raises:
        UserError: diffusers is not installed, or there is no such schedule.
    """

    signal: torch.Tensor

    def __init__(self, num_train_steps: int, *, betas: str, prediction: str, clip: float | None):
        super().__init__()
        one_of("betas", betas, BETAS)
        one_of("prediction", prediction, PREDICTIONS)
        self.num_train_steps, self.prediction, self.clip = num_train_steps, prediction, clip
        table = _alphas_cumprod(num_train_steps, betas)
        self.levels: list[float] = table.tolist()
        # made again with the policy: no checkpoint holds it
        self.register_buffer("signal", table, persistent=False)

    def noisy(self, clean: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """(B, Ta, Da) with as much noise as training step `steps` (B,) int64 has."""
        a = self.signal[steps][:, None, None]
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def wanted(self, clean: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """(B, Ta, Da) what the network is to give."""
        if self.prediction == "v":
            a = self.signal[steps][:, None, None]
            return a.sqrt() * noise - (1 - a).sqrt() * clean
        return noise if self.prediction == "epsilon" else clean

    def steps(self, num_steps: int) -> list[int]:
        """The training steps that `num_steps` sampling steps go through, the noisiest first ("trailing").

        Raises:
            ValueError: training has fewer.
        """
        self.check(num_steps)
        # so that the first has no chunk in it and one step is enough: Lin et al. 2024
        return [round(self.num_train_steps * (1 - done / num_steps)) - 1 for done in range(num_steps)]

    def check(self, num_steps: int) -> None:
        """Raises ValueError when training has fewer steps than sampling is to go through."""
        if num_steps > self.num_train_steps:
            raise ValueError(f"num_steps={num_steps}: this head was trained on {self.num_train_steps} steps at most.")

    def clean(self, noisy: torch.Tensor, predicted: torch.Tensor, step: int) -> torch.Tensor:
        """(B, Ta, Da) the chunk that a prediction at a training step stands for."""
        a = self.levels[step]
        if self.prediction == "v":
            predicted = math.sqrt(a) * noisy - math.sqrt(1 - a) * predicted
        elif self.prediction == "epsilon":
            predicted = (noisy - math.sqrt(1 - a) * predicted) / math.sqrt(a)
        return predicted if self.clip is None else predicted.clamp(-self.clip, self.clip)

    def ddim(self, noisy: torch.Tensor, clean: torch.Tensor, step: int, *, then: int | None) -> torch.Tensor:
        """The chunk at training step `then`, None = without noise, on the path that draws no noise (eta = 0)."""
        a, b = self.levels[step], self._level(then)
        noise = (noisy - math.sqrt(a) * clean) / math.sqrt(1 - a)
        return math.sqrt(b) * clean + math.sqrt(1 - b) * noise

    def ddpm(
        self, noisy: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, step: int, *, then: int | None
    ) -> torch.Tensor:
        """The same, drawn from the posterior with the smaller of Ho et al.'s variances; `noise` is standard normal."""
        a, b = self.levels[step], self._level(then)
        beta = 1 - a / b
        mean = math.sqrt(b) * beta / (1 - a) * clean + math.sqrt(a / b) * (1 - b) / (1 - a) * noisy
        return mean + math.sqrt((1 - b) / (1 - a) * beta) * noise

    def _level(self, step: int | None) -> float:
        return 1.0 if step is None else self.levels[step]


def _alphas_cumprod(num_train_steps: int, betas: str) -> torch.Tensor:
    """(num_train_steps,) float32 share of the chunk's variance."""
    try:
        # the module alone: diffusers as a whole takes seconds to import
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    except ImportError:
        raise UserError(
            "policy.head.kind=diffusion needs diffusers, which is not installed. "
            "Type pip install 'ppt_kit[diffusion]', or take policy.head.kind=flow, which needs nothing more."
        ) from None
    return DDPMScheduler(num_train_timesteps=num_train_steps, beta_schedule=betas).alphas_cumprod.float()
