"""Dtypes of a computation, from autocast and from the tensors, so that no setting is needed."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Returns autocast's dtype if autocast is on for the device of ``x``, else the dtype of ``x``.

    Autocast leaves float64 alone, and so does this function.
    """
    # Not torch.amp.is_autocast_available: torch 2.11 cannot compile that, and breaks the graph. The
    # meta device alone has no autocast.
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def at_least_float32(x: Tensor) -> Tensor:
    """Raises float16 and bfloat16 to float32, and returns anything wider as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
