"""Imports Lightning without torch's compiler and without matplotlib, which take half of its time.

Lightning asks for ``torch._dynamo`` to recognise compiled modules, and torchmetrics, below it, asks
for matplotlib to name types of its plots. Neither is used before a module is compiled or a metric
is plotted, so both are loaded then instead. Measured with lightning 2.6.6 and torch 2.13: 1.4 s of
CPU instead of 3.4 s.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """A module that is imported when something else than its given attributes is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _IfCompiled(type):
    """No object can be a compiled module before the compiler is loaded."""

    def __instancecheck__(cls, instance: object) -> bool:
        real = sys.modules.get("torch._dynamo.eval_frame")
        return real is not None and isinstance(instance, real.OptimizedModule)


class _OptimizedModule(metaclass=_IfCompiled):
    """Stands in for torch's class of compiled modules in tests by ``isinstance``."""


def import_lightning() -> None:
    """Imports Lightning; to be called before anything else does, or it has no effect."""
    if "lightning" in sys.modules:
        return
    with _without_compiler(), _without_matplotlib():
        import lightning.pytorch  # noqa: F401
    import torch

    # Torch loads the compiler when the first optimizer gets its parameters, to keep this method out
    # of compiled code. Nothing compiles it here, and `check` builds an optimizer on trial.
    add = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    vars(add).setdefault("__dynamo_disable", add)


@contextmanager
def _without_compiler() -> Iterator[None]:
    import torch

    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    later = _Later(name)
    # A package: whoever imports a part of it gets the real part.
    later.__path__ = [f"{folder}/_dynamo" for folder in torch.__path__]
    later.OptimizedModule = _OptimizedModule  # type: ignore[attr-defined]
    later.disable = _disable  # type: ignore[attr-defined]
    sys.modules[name] = later
    try:
        yield
    finally:
        if sys.modules.get(name) is later:
            del sys.modules[name]


def _disable(
    fn: Callable[..., Any] | None = None, recursive: bool = True, **_: object
) -> Callable[..., Any]:
    """Torch's own way to mark a function for the compiler and load that at the first call."""
    from torch._compile import _disable_dynamo

    marked: Callable[..., Any] = _disable_dynamo(fn, recursive)
    return marked


@contextmanager
def _without_matplotlib() -> Iterator[None]:
    from lightning_utilities.core.imports import RequirementCache

    if "matplotlib" in sys.modules:
        yield
        return
    available = RequirementCache.__bool__

    def hidden(cache: RequirementCache) -> bool:
        return cache.requirement != "matplotlib" and available(cache)

    RequirementCache.__bool__ = hidden  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        RequirementCache.__bool__ = available  # type: ignore[method-assign]
        plot: Any = sys.modules["torchmetrics.utilities.plot"]
        plot.plt = _Later("matplotlib.pyplot")  # what its functions draw with
