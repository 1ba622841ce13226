"""What a configuration says about the use of its devices, besides which they are.

The allocator and NCCL read the environment once, before the first tensor and the first process
group. A variable that the user has set stands; ours are for those who have set none.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch

from llm_train.errors import ConfigError
from llm_train.runtime.affinity import near_device
from llm_train.runtime.devices import Kind

_ALLOCATOR = "PYTORCH_ALLOC_CONF"
_ALLOCATOR_BEFORE = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # still read by torch


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """How devices are used.

    Args:
        float32_matmul: how float32 matrices are multiplied: ieee keeps float32; tf32 rounds
            operands to TF32, seven times the speed on an H100; auto is tf32 on CUDA devices.
        expandable_segments: CUDA's allocator grows its segments instead of keeping blocks that
            nothing fits into.
        numa_binding: each rank stays on the processors next to its CUDA device.
        nccl: environment variables for NCCL, for instance ``TORCH_NCCL_HIGH_PRIORITY: "1"``.
    """

    float32_matmul: Literal["auto", "tf32", "ieee"] = "auto"
    expandable_segments: bool = True
    numa_binding: bool = True
    nccl: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in map(str, self.nccl):
            if not name.startswith(("NCCL_", "TORCH_NCCL_")) or "=" in name:
                raise ConfigError(
                    f"device.nccl.{name} is no variable of NCCL; give NCCL_... or TORCH_NCCL_..."
                )

    def problems(self, kind: Kind) -> Iterator[str]:
        """What would have no effect."""
        if self.float32_matmul == "tf32" and not kind.tf32:
            yield f"device.float32_matmul=tf32 has no effect on {kind.type}; write auto"
        if self.nccl and kind.type != "cuda":
            yield f"device.nccl has no effect on {kind.type}; remove it"

    def product_dtype(self, kind: Kind, precision: str) -> str:
        """The type in which most matrices are multiplied, by its name in the table of devices."""
        if "16" in precision:  # one rate for both kinds of 16 bits
            return "bf16"
        return "tf32" if self._tf32(kind) else "fp32"

    def prepare(self, kind: Kind) -> None:
        """Sets the environment, which must happen before CUDA is initialised."""
        for name, value in self._environment(kind).items():
            if not _set_by_user(name):
                os.environ[name] = value

    @contextmanager
    def in_use(self, kind: Kind, index: int) -> Iterator[None]:
        """What holds while a run lasts, on a device that is here."""
        before = torch.get_float32_matmul_precision()
        bound = kind.type == "cuda" and self.numa_binding
        if kind.tf32:
            # torch refuses to mix this with its newer names of the same setting, and its compiler
            # asks for both; this one sets both.
            torch.set_float32_matmul_precision("high" if self._tf32(kind) else "highest")
        try:
            with near_device(index) if bound else nullcontext():
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def described(self, kind: Kind) -> dict[str, str]:
        """What ``check`` prints of it; no device is asked."""
        rows = {"float32_matmul": "tf32" if self._tf32(kind) else "ieee"}
        for name, value in self._environment(kind).items():
            user = _set_by_user(name)
            given = next((os.environ[key] for key in user if os.environ[key] != value), "")
            rows[name] = f"{given} (from the environment, not {value})" if given else value
        if kind.type == "cuda" and self.numa_binding:
            rows["numa_binding"] = "each rank next to its device"
        return rows

    def _tf32(self, kind: Kind) -> bool:
        return kind.tf32 and self.float32_matmul != "ieee"

    def _environment(self, kind: Kind) -> Mapping[str, str]:
        if kind.type != "cuda":
            return {}
        expandable = {_ALLOCATOR: "expandable_segments:True"} if self.expandable_segments else {}
        return expandable | self.nccl


def _set_by_user(name: str) -> list[str]:
    names = (name, *_ALLOCATOR_BEFORE) if name == _ALLOCATOR else (name,)
    return [key for key in names if key in os.environ]
