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

The orthogonalization does not converge, on purpose. The quintic's coefficients (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/) are steep at zero, so that small singular values grow
fast, and leave all of them somewhere in [0.7, 1.2] instead of at 1; training does not notice, and
five steps suffice.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim

from llm_train.model.optimizer.groups import Group
from llm_train.runtime.sharded import is_dtensor, local_part, own_part

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


class MuonWithAdamW(optim.AdamW):
    """Muon on groups with ``algorithm: muon``, AdamW on those with ``algorithm: adamw``."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Not Adam's, which looks for a count of steps in the state of every parameter."""
        super(optim.Adam, self).__setstate__(state)

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's overloads say the same
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """One update of every group, by its algorithm."""
        loss = None
        if closure is not None:  # which clips, and so must see all groups
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        muon, adamw = ([g for g in groups if g["algorithm"] == name] for name in ("muon", "adamw"))
        self.param_groups = adamw  # torch updates what it has in view
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in muon:
            self._muon(group)
        return loss

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
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            # Every rank has the whole and takes its part.
            local_part(parameter).add_(own_part(whole, parameter), alpha=-group["lr"] * scale)


def _newton_schulz_dtype(name: str, matrix: Tensor) -> torch.dtype:
    """``auto`` is float32 on a CPU, where bfloat16 is slow, and bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
    return _DTYPES[name]


# x -> a x + b x^3 + c x^5 on every singular value
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Brings the singular values of each matrix near 1 and keeps its singular vectors.

    Args:
        matrices: (R, C) or (N, R, C); a zero matrix gives zero. Many matrices at once are three
            kernels a step instead of three for each of them.
        steps: number of iterations; singular values below about ``3.4 ** -steps`` of the Frobenius
            norm stay small.
        dtype: of the products. bfloat16 is accurate enough, and slow on CPUs without it.

    Returns:
        In the shape of ``matrices`` and in ``dtype``.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices.to(dtype).reshape(-1, *matrices.shape[-2:])
    x = x if wide else x.mT  # (N, r, c) with r <= c: the smaller Gram matrix
    # The largest singular value is then at most 1.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)  # (N, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x if wide else x.mT).reshape(matrices.shape)
