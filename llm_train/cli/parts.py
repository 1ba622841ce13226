"""Builds the parts of a run and collects what they object to, with the key each of them stands at.

A part is built by a parser that knows its class but not its place. So a failure keeps class and
arguments, and its place is looked up in the configuration afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from llm_train.cli import schema
from llm_train.errors import ConfigError, LLMTrainError

_EXTRAS = ("tensorboard", "wandb", "deepspeed", "datasets")


class _Failed:
    """Stands in for a part that could not be built."""


_FAILED = _Failed()


class Failure(NamedTuple):
    """A class that refused its arguments."""

    kind: type
    arguments: Mapping[str, Any]
    error: Exception


class Builder:
    """Calls classes; after the block, deferred calls are passed through unchanged."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self._collecting = False

    def __enter__(self) -> Self:
        self._collecting = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._collecting = False

    def __call__(self, kind: Any, *arguments: Any, **settings: Any) -> Any:
        """Builds ``kind``, unless a part of it failed already."""
        if not self._collecting:
            return kind(*arguments, **settings)
        if any(_holds_failure(value) for value in settings.values()):
            return _FAILED
        try:
            return kind(*arguments, **settings)
        except Exception as error:  # whatever a named class raises is about its settings
            self.failures.append(Failure(kind, settings, error))
            return _FAILED

    def raise_failures(
        self, config: Mapping[str, Any], roots: Mapping[str, schema.Setting]
    ) -> None:
        """Reports all failures.

        Raises:
            ConfigError: one line for each.
        """
        if self.failures:
            lines = [_describe(failure, config, roots) for failure in self.failures]
            raise ConfigError("\n".join(dict.fromkeys(lines))) from self.failures[0].error


def _holds_failure(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_failure(item) for item in value)
    return value is _FAILED


def _describe(
    failure: Failure, config: Mapping[str, Any], roots: Mapping[str, schema.Setting]
) -> str:
    path = _place(failure, config, roots)
    name, error = failure.kind.__name__, failure.error
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LLMTrainError):
        return prefixed(path, text, name)
    if isinstance(error, ImportError):
        for package in _EXTRAS:
            if package in text.lower():
                return (
                    f"{path}: {name} needs the package {package}, which is not installed; "
                    f"pip install 'llm-train[{package}]'"
                )
    return f"{path}: {name} refuses its settings: {text}"


def prefixed(path: str, text: str, name: str = "") -> str:
    """Puts the key of a part before what it says, unless it says so itself.

    >>> prefixed("model.network", "width=15 is not a multiple of heads=2")
    'model.network: width=15 is not a multiple of heads=2'
    >>> prefixed("model.optimizer", "optimizer.eps=-1 is not > 0")
    'model.optimizer: eps=-1 is not > 0'
    >>> prefixed("batch", "batch.tokens=0 must be at least 1")
    'batch.tokens=0 must be at least 1'
    """
    if not path or text.startswith((f"{path}.", f"{path}=", f"{path}:")):
        return text
    last = re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]
    for own in (f"{last}.", f"{last}: ", f"{name}."):
        if len(own) > 1 and text.startswith(own):
            text = text.removeprefix(own)
            break
    return f"{path}: {text}"


def _place(failure: Failure, config: Mapping[str, Any], roots: Mapping[str, schema.Setting]) -> str:
    for key in schema.all_keys(roots):
        if schema.setting_at(roots, key).hint is failure.kind:
            return key
    found = [
        (path, settings)
        for path, class_path, settings in _class_paths(config, "")
        if class_path.rpartition(".")[2] == failure.kind.__name__
    ]
    for path, settings in found:
        if all(settings.get(key, value) == value for key, value in _scalars(failure.arguments)):
            return path
    return found[0][0] if found else failure.kind.__name__


def _scalars(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in arguments.items() if isinstance(v, str | int | float | bool)]


def _class_paths(value: Any, path: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every class named below ``value``: its key, its import path and its plain settings."""
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield path, value["class_path"], value.get("init_args") or {}
        for key, inner in value.items():
            yield from _class_paths(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _class_paths(inner, f"{path}[{index}]")
