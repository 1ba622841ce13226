"""Linear layers whose weight is cast once per optimizer step instead of once per forward.

Under autocast a float32 weight is cast each time its layer runs: for every micro-batch, and again
in every recomputation. Here a module may hold a shadow weight: its weight in the dtype of products.
The product reads the shadow, and the gradient goes to the float32 weight. A module without a shadow
behaves as ``nn.Linear`` does; strategies that cast while they gather, and precisions that cast
nothing, need none.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_train.model.projection import through_shadow


class HasShadow:
    """Mixed into modules whose ``weight`` is multiplied by, in the dtype of ``shadow``."""

    shadow: Tensor | None = None
    """A plain attribute, not a buffer: no state dict, no broadcast and no cast may touch it."""

    weight: Tensor


def shadowed(network: nn.Module) -> list[HasShadow]:
    """The modules of ``network`` that have a place for a shadow, filled or not."""
    return [module for module in network.modules() if isinstance(module, HasShadow)]


class ShadowedLinear(HasShadow, nn.Linear):
    """``nn.Linear`` that multiplies by ``shadow`` where it is set."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, through_shadow(self.weight, self.shadow), self.bias)


class ShadowWeights:
    """Shadows of all weights in ``network`` that have a place for one, which follow their weights.

    They cost 2 bytes a parameter for bfloat16, which autocast holds from forward to backward too.

    Torch counts the in-place changes of a tensor, whoever makes them, and a forward of ``network``
    casts first when a count has moved. Two kinds of write are not counted: those through ``.data``,
    as Lightning's ``WeightAveraging`` swaps weights, and those of kernels over lists of tensors
    (fused optimizers; ``torch._foreach_*`` on a GPU). So the first forward after a step of the
    optimizer, and after a change between training and evaluation, casts in any case. Who writes in
    one of these ways between two micro-batches of a step calls
    ``torch.autograd.graph.increment_version``.

    Args:
        network: materialised, and not under ``torch.inference_mode()``, where nothing is counted.
        dtype: of the shadows.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self._network = network
        self._weights: list[Tensor] = []
        self._shadows: list[Tensor] = []
        self._seen: list[int] = []
        for module in shadowed(network):
            module.shadow = torch.empty_like(module.weight, dtype=dtype, requires_grad=False)
            self._weights.append(module.weight)
            self._shadows.append(module.shadow)
        self.cast()
        network.register_forward_pre_hook(self._before_forward)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes every step of ``optimizer`` for a change."""
        optimizer.register_step_post_hook(lambda *_: self._seen.clear())

    def _before_forward(self, *_: object) -> None:
        # A graph cannot read counts; whoever compiled the network calls refresh before it.
        if not torch.compiler.is_compiling():
            self.refresh()

    def refresh(self) -> None:
        """Casts the weights if one has changed. Counts are the host's: nothing is waited for."""
        if self._seen != self._now():
            self.cast()

    @torch.no_grad()
    def cast(self) -> None:
        """Casts the weights, whether they have changed or not."""
        torch._foreach_copy_(self._shadows, self._weights)
        self._seen = self._now()

    def _now(self) -> list[int]:
        return [self._network.training, *(weight._version for weight in self._weights)]
