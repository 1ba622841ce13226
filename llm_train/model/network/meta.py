"""Building modules without memory, to count and to ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside the block are on the meta device and have no values."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leaves out ``torch.nn.init``: values of meta tensors do not exist.

    Torch would draw them all the same, by code in Python that imports the compiler (0.7 s).
    """

    def __torch_function__(  # Any: torch's own signature
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" and "tensor" in given:
            return given["tensor"]
        return func(*args, **given)
