"""The nearest orthogonal matrix, roughly, from matrix products alone.

What is unusual: it does not converge, on purpose. The quintic's coefficients (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/) are steep at zero, so that small singular values grow
fast, and leave all of them somewhere in [0.7, 1.2] instead of at 1; training does not notice, and
five steps suffice.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
