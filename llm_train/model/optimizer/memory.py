"""Bytes of tensors, for what optimizers say of their state (``Optimizer.state_bytes``)."""

from __future__ import annotations

from torch import Tensor

from llm_train.runtime.sharded import local_part

STEP_BYTES = 4
"""Of the step counter that torch's and torchao's Adam keep alongside each parameter, a float32."""


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the memory that holds ``tensor`` on this rank.

    A DTensor is asked for its local part, a quantized tensor for the tensors it is made of.

    >>> import torch
    >>> tensor_bytes(torch.zeros(3, 5, dtype=torch.bfloat16))
    30
    """
    tensor = local_part(tensor)
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()
