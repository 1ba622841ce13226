"""Asks autocast for the dtype of products and activations, so that no setting is needed for it."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Returns autocast's dtype if autocast is on for the device of ``x``, else the dtype of ``x``.

    Autocast leaves float64 alone, and so does this function.
    """
    kind = x.device.type
    if (
        torch.amp.is_autocast_available(kind)
        and torch.is_autocast_enabled(kind)
        and x.dtype != torch.float64
    ):
        return torch.get_autocast_dtype(kind)
    return x.dtype
