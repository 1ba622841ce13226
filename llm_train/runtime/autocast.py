"""Which dtype products and activations have, asked of autocast: nobody needs a setting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on for the device of ``x``, else that of ``x``.

    Autocast leaves float64 alone, and so does this.
    """
    kind = x.device.type
    if (
        torch.amp.is_autocast_available(kind)
        and torch.is_autocast_enabled(kind)
        and x.dtype != torch.float64
    ):
        return torch.get_autocast_dtype(kind)
    return x.dtype
