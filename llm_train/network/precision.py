"""Which dtype activations have, asked of autocast so that a network needs no setting of its own."""

from __future__ import annotations

import torch
from torch import Tensor


def activation_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on, else that of ``x``."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype
