"""An optimizer that keeps its state in its groups, as many do that are not torch's."""

from __future__ import annotations

from typing import Any

import torch


class Counting(torch.optim.Optimizer):
    """Gradient descent whose steps shrink as it counts them; ``drift`` moves with every one."""

    def __init__(self, params: Any, lr: float = 0.1, drift: tuple[float, float] = (1.0, 0.9)):
        super().__init__(params, {"lr": lr, "drift": drift, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates every parameter with a gradient."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            scale, decay = group["drift"]
            group["drift"] = (scale * decay, decay)
            seen = group.setdefault("seen", [torch.zeros(1)])
            seen[0] += scale
            for parameter in group["params"]:
                if parameter.grad is not None:
                    rate = group["lr"] * scale / (group["step"] + float(seen[0]))
                    parameter.add_(parameter.grad, alpha=-rate)
        return loss
