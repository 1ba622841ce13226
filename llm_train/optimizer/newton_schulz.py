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


def orthogonalize(matrix: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Brings the singular values of ``matrix`` (R, C) near 1 and keeps its singular vectors.

    Args:
        matrix: any two-dimensional tensor; zero gives zero.
        steps: number of iterations; singular values below about ``3.4 ** -steps`` of the Frobenius
            norm stay small.
        dtype: of the products. bfloat16 is accurate enough, and slow on CPUs without it.

    Returns:
        (R, C) in ``dtype``.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix.to(dtype)
    x = x if wide else x.t()  # (r, c) with r <= c: the smaller Gram matrix
    x = x / x.norm().clamp(min=1e-7)  # the largest singular value is then at most 1
    for _ in range(steps):
        gram = x @ x.t()  # (r, r)
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x if wide else x.t()
