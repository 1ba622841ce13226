"""One torch optimizer that updates some groups by Muon and the others by AdamW.

What is unusual: two algorithms in one object, because Lightning's automatic optimization and
DeepSpeed want one optimizer. A group says which in its key ``algorithm`` and carries only the
settings of that algorithm. Both keep state in the parameter's shape (plus a scalar step for AdamW),
so a checkpoint treats them alike.

Muon, for a matrix W with gradient G (momentum m, R rows, C columns)::

    M <- m M + (1 - m) G                       (in the shard's layout)
    U <- orthogonalize(m M + (1 - m) G)        (Nesterov; the scale does not matter)
    W <- (1 - lr decay) W - lr scale(R, C) U

A sharded matrix (DTensor) is gathered for the orthogonalization, which every rank repeats, and each
keeps its shard of the result: right on any mesh, at the cost of redundant products.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from llm_train.model.optimizer.group_by_group import GroupByGroup
from llm_train.model.optimizer.groups import Group
from llm_train.model.optimizer.newton_schulz import orthogonalize
from llm_train.runtime.sharded import is_dtensor

LEARNING_RATE_SCALES: dict[str, Callable[[int, int], float]] = {
    # Jordan et al.: a unit of spectral norm per update, whatever the shape.
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    # Liu et al., arXiv:2502.16982, eq. 4: the root mean square of an AdamW update, about 0.2.
    "match_rms": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
# Small matrices do not fill a GPU, so they go together; large ones would only take memory.
_BATCH_ELEMENTS = 1 << 24
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MUON_SETTINGS = (
    "learning_rate_scaling",
    "momentum",
    "newton_schulz_steps",
    "newton_schulz_dtype",
)
"""What a group with ``algorithm: muon`` has besides ``lr`` and ``weight_decay``."""


class MuonWithAdamW(GroupByGroup):
    """Muon on groups with ``algorithm: muon``, AdamW on those with ``algorithm: adamw``."""

    def __init__(self, groups: Iterable[Group]) -> None:
        super().__init__(list(groups), {})

    def update_group(self, group: Group) -> None:
        """By the algorithm that the group names."""
        if group["algorithm"] == "muon":
            self._muon(group)
        else:
            self._adamw(group)

    def _muon(self, group: Group) -> None:
        """Momentum matrix by matrix, orthogonalization of all matrices of a shape together."""
        ready: dict[tuple[torch.Size, torch.device], list[tuple[Tensor, Tensor]]] = defaultdict(
            list
        )
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            update = self._momentum(group, parameter)
            whole = update.full_tensor() if is_dtensor(update) else update  # (R, C)
            batch = ready[whole.shape, whole.device]
            batch.append((parameter, whole))
            if len(batch) * whole.numel() >= _BATCH_ELEMENTS:
                self._update(group, ready.pop((whole.shape, whole.device)))
        for batch in ready.values():
            self._update(group, batch)

    def _momentum(self, group: Group, parameter: Tensor) -> Tensor:
        """What Muon orthogonalizes, in the layout of the parameter."""
        # The traits of MuonAdamW have kept it away from strategies that flatten, as ZeRO does.
        assert parameter.ndim == 2, f"a matrix of shape {tuple(parameter.shape)}"
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1.0 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"])

    def _update(self, group: Group, batch: list[tuple[Tensor, Tensor]]) -> None:
        """Moves matrices of one shape."""
        matrices = torch.stack([whole for _, whole in batch])  # (N, R, C)
        dtype = _newton_schulz_dtype(group["newton_schulz_dtype"], matrices)
        moves = orthogonalize(matrices, group["newton_schulz_steps"], dtype)
        scale = LEARNING_RATE_SCALES[group["learning_rate_scaling"]](*matrices.shape[1:])
        for (parameter, _), whole in zip(batch, moves.to(matrices.dtype).unbind(), strict=True):
            move = whole
            if is_dtensor(parameter):
                from torch.distributed.tensor import distribute_tensor

                # Every rank has the whole: none needs to send (src_data_rank=None), each takes its
                # part.
                mesh, placements = parameter.device_mesh, parameter.placements
                move = distribute_tensor(whole.contiguous(), mesh, placements, src_data_rank=None)
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(move, alpha=-group["lr"] * scale)

    def _adamw(self, group: Group) -> None:
        """AdamW over the group, by the kernels of torch."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                device = parameter.device if group["fused"] else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"] or None,  # False would switch off multi-tensor kernels as well
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _newton_schulz_dtype(name: str, matrix: Tensor) -> torch.dtype:
    """``auto`` is float32 on a CPU, where bfloat16 is slow, and bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
    return _DTYPES[name]
