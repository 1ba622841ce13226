"""Stochastic gradient Langevin dynamics (Welling and Teh, ICML 2011): descent with noise.

With rate r and temperature T, and normal noise z of variance 1::

    W <- W - r g + sqrt(2 r T) z

For small rates the weights are then samples of exp(-loss / T). The loss is a mean over tokens, so
that T = 1 / N is the posterior of N training tokens, with weight decay as its prior. (The paper's
step is twice r, and its sum over data N times our mean.)

What is unusual: noise is a function of (seed, step, name of the parameter), drawn for the whole
tensor, of which every rank takes its part. A resumed run draws what an unbroken one would, and so
does one on another number of ranks; a generator's state would have to be saved and split. Devices
of another kind draw other numbers.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_train.model.optimizer.update_rule import Update, UpdateRule
from llm_train.runtime.sharded import local_part, own_part


@dataclass(frozen=True, kw_only=True)
class SGLD(UpdateRule):
    """Gradient descent with noise, which samples weights; keeps no state.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        temperature: of the distribution exp(-loss / temperature); 1 / training tokens for the
            posterior, 0 for plain gradient descent.
        seed: of the noise.
        weight_decay: fraction taken off per step, times the learning rate, of parameters with two
            or more dimensions.
    """

    needs = "whole tensors with names, to which its noise belongs"
    needs_whole: ClassVar[bool] = True
    buffers: ClassVar[int] = 0

    temperature: float
    seed: int = 0

    def update(self, now: Update) -> None:
        """One step."""
        now.move(now.gradient)
        size = math.sqrt(2.0 * now.rate * self.temperature)
        noise = own_part(self._noise(now), now.weight)
        local_part(now.weight).add_(noise, alpha=size)

    def _noise(self, now: Update) -> Tensor:
        """Of the whole parameter, standard normal."""
        digest = hashlib.sha256(f"{self.seed}:{now.step}:{now.name}".encode()).digest()
        generator = torch.Generator(device=now.weight.device)
        generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # 63 bits: fits int64
        return torch.randn(now.weight.shape, generator=generator, device=now.weight.device)
