"""Building modules without memory, to count and to ask, or without that of parameters, to train."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside the block are on the meta device and have no values."""
    with torch.device("meta"), _Unfilled():
        yield


@contextmanager
def without_parameters() -> Iterator[None]:
    """Modules built inside the block have buffers with their values, and parameters without memory.

    What a constructor computes into a buffer is a function of the configuration that nobody else
    knows, whereas the values of parameters come from elsewhere. A constructor's ``torch.empty`` for
    a parameter exists until the parameter is registered; no page of it is ever touched.
    """
    # torch's hint forgets that what a hook returns takes the parameter's place.
    handle = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]
    try:
        with _Unfilled():
            yield
    finally:
        handle.remove()


def _to_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:  # a tied one is on meta already, and stays itself
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


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
        filler = getattr(func, "__module__", "") == "torch.nn.init"
        if filler and "tensor" in given and given["tensor"].is_meta:
            return given["tensor"]
        return func(*args, **given)


def allocate(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives the parameters of ``module`` that have no memory some; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta and parameter not in made:
                whole = torch.empty_like(parameter, device=device, dtype=dtype)
                made[parameter] = nn.Parameter(whole, parameter.requires_grad)
            owner.register_parameter(name, made.get(parameter, parameter))
