"""``trainer.precision: 16-mixed``: float16 products, and a loss that is scaled for backward.

Gradients below 6e-8 are zero in float16, so the loss is multiplied by a large factor first
(Micikevicius et al., arXiv:1710.03740). Where a gradient overflows, the update is left out and the
factor halved; after 2,000 updates in a row it is doubled.

What is unusual: gradients are unscaled before their norm is taken for every optimizer, fused ones
included, which Lightning refuses to clip; and updates that were left out are counted on the device.
A step that was left out has consumed its data: step, schedule and position in the data go on, as
with ``Guard``; the optimizer's own count of updates does not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from llm_train.context import Context


def problems(context: Context) -> list[str]:
    """Where one scaler does not see all gradients, or sees them too late."""
    strategy, key = context.strategy, "trainer.precision=16-mixed"
    found = []
    if strategy.communicates_between_blocks or strategy.flattens or not strategy.one_model:
        found.append(f"{key} under {strategy.name} is not supported; use ddp, or bf16-mixed")
    if context.update == "backward":
        found.append(f"{key}: model.update=backward would use scaled gradients; write step")
    if context.compile == "graphs":
        found.append(f"{key}: model.compile=graphs holds no scaler; write network, or bf16-mixed")
    if context.accelerator.type not in ("cpu", "cuda"):
        found.append(f"{key} has no scaler on {context.accelerator.type}; write bf16-mixed")
    return found


class LossScaling(MixedPrecision):
    """Lightning's plugin with torch's scaler, and a rider of log points (``run_state``).

    Args:
        device: kind of the device.
    """

    def __init__(self, device: str) -> None:
        self._torch_scaler = torch.amp.GradScaler(device)
        super().__init__("16-mixed", device, self._torch_scaler)
        self._left_out: Tensor | None = None  # since the last log point, on the device
        self._published = 0  # before it

    def optimizer_step(  # type: ignore[override]
        self,
        optimizer: torch.optim.Optimizer,
        model: LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        """The last micro-batch, unscaling, clipping, and the update unless something overflowed."""
        result, scaler = closure(), self._torch_scaler
        scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        scaler.step(optimizer, **kwargs)
        scaler.update()
        return result

    def seen(self, norm: Tensor) -> Tensor:
        """The norm of a step, 0 where its update is left out; counts those."""
        finite = norm.isfinite()
        left_out = (~finite).to(torch.float32)
        self._left_out = left_out if self._left_out is None else self._left_out + left_out
        return torch.where(finite, norm, torch.zeros_like(norm))

    # --- at a log point ---------------------------------------------------------------------------

    def take(self) -> Tensor:
        """(3,) updates left out and the scale, the same on all ranks, and 1 to count these."""
        scale = self._torch_scaler.scale(torch.ones((), device=self._where()))
        left_out = torch.zeros_like(scale) if self._left_out is None else self._left_out
        self._left_out = None
        return torch.stack([left_out, scale, torch.ones_like(scale)])

    def metrics(self, summed: Sequence[float]) -> dict[str, float]:
        """Both, as any rank has them."""
        left_out, scale, ranks = summed
        self._published += round(left_out / ranks)
        return {"optimizer/skipped": float(self._published), "optimizer/loss_scale": scale / ranks}

    def _where(self) -> torch.device:
        return torch.device(self.device) if self._left_out is None else self._left_out.device

    def state_dict(self) -> dict[str, Any]:
        """The scaler's, and the counts; waits for the device, as saving does."""
        open_ = 0 if self._left_out is None else int(self._left_out)
        return {"scaler": super().state_dict(), "open": open_, "published": self._published}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with all of it."""
        super().load_state_dict(state_dict["scaler"])
        self._published = state_dict["published"]
        self._left_out = torch.tensor(float(state_dict["open"]), device=self._where())
