"""Which kernel torch's scaled_dot_product_attention tries first.

On Hopper and Blackwell cuDNN's fused attention is the fastest of those that come with torch, but
torch does not always try it first. The order is a global state of torch; it is set around a run and
put back. A kernel that cannot do a shape is passed over, so an order never makes a run fail. On a
CPU there is nothing to choose.

FlashAttention 3 comes from its own package (``FLASH3_PACKAGE``); torch then runs it in the place of
the version that it brings along.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.nn.attention import (
    SDPBackend,
    activate_flash_attention_impl,
    restore_flash_attention_impl,
    sdpa_kernel,
)

from llm_train.context import Context

Kernel = Literal["auto", "cudnn", "flash", "flash3", "efficient"]

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
FLASH3_PACKAGE = "flash_attn_interface"
_CUDNN_FROM = (9, 0)  # compute capability


def problems(kernel: Kernel, context: Context) -> Iterator[str]:
    """A kernel that is not installed, or that nothing would use."""
    if kernel == "flash3" and importlib.util.find_spec(FLASH3_PACKAGE) is None:
        yield (
            f"model.attention=flash3 needs the package {FLASH3_PACKAGE}, which is not installed; "
            "install FlashAttention 3, or write auto"
        )
    if kernel != "auto" and (kind := context.accelerator.type) != "cuda":
        yield f"model.attention={kernel} has no effect on {kind}, which has one kernel; remove it"


@contextmanager
def attention_order(kernel: Kernel, device: torch.device) -> Iterator[None]:
    """Tries ``kernel`` first inside the block, then flash, cuDNN, memory-efficient and plain.

    Args:
        kernel: ``auto`` is cudnn from compute capability 9.0 on, flash before; ``flash3`` is
            FlashAttention 3, where it is installed.
        device: of the run.
    """
    if device.type != "cuda":
        yield
        return
    first: str = kernel
    if kernel == "auto":
        capability = torch.cuda.get_device_capability(device)
        first = "cudnn" if capability >= _CUDNN_FROM else "flash"
    if kernel == "flash3":
        activate_flash_attention_impl("FA3")
        first = "flash"
    order = sorted(_KERNELS, key=lambda name: name != first)  # the others in their order
    with sdpa_kernel([_KERNELS[name] for name in order], set_priority=True):
        try:
            yield
        finally:
            if kernel == "flash3":
                restore_flash_attention_impl()
