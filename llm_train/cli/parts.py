"""Builds the parts of a run and collects what they object to, with the key each of them stands at.

A part is built by a parser that knows its class but not its place. Places are known from the walk
through the document, and classes are built in the order in which they stand there.

Where a later file or option names another class, the parser hands on the arguments that the new
class knows, also where they mean something else to it, as a learning rate does, and drops all
others. Neither may happen without a word (``Exchange``).
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from llm_train.cli import schema
from llm_train.cli.secret_keys import revealed
from llm_train.errors import ConfigError, LLMTrainError

_FAILED = object()  # stands in for a part that could not be built


class Builder:
    """Calls classes until ``raise_failures``; deferred calls after that are passed on unchanged.

    Args:
        chosen: the class at each key, in order.
        owners: keys below which settings stand.
    """

    def __init__(self, chosen: Mapping[str, type], owners: Collection[str]) -> None:
        self._chosen = dict(chosen)
        self._owners = owners
        self._failures: dict[str, Exception] = {}
        self._collecting = True

    def __call__(self, kind: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """Builds ``kind``, unless a part of it failed already."""
        if not self._collecting:
            return kind(*arguments, **revealed(settings))
        place = next((key for key, chosen in self._chosen.items() if chosen is kind), "")
        self._chosen.pop(place, None)
        if any(_holds_failure(value) for value in settings.values()):
            return _FAILED
        try:
            return kind(*arguments, **revealed(settings))
        except Exception as error:  # whatever a named class raises is about its settings
            inner = f"{place}.init_args"
            inner = inner if inner in self._owners else place
            self._failures[_describe(place, inner, kind, error)] = error
            return _FAILED

    def raise_failures(self) -> None:
        """Reports all failures.

        Raises:
            ConfigError: one line for each.
        """
        self._collecting = False
        if self._failures:
            raise ConfigError("\n".join(self._failures)) from next(iter(self._failures.values()))


def _holds_failure(value: object) -> bool:
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return any(_holds_failure(item) for item in items)
    return value is _FAILED


def _describe(place: str, inner: str, kind: Callable[..., Any], error: Exception) -> str:
    name = kind.__name__
    path, text = place or name, " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LLMTrainError):
        known = schema.settings_of(kind) if isinstance(kind, type) else ()
        return prefixed(path, text, name, known if place else (), inner)
    if isinstance(error, ImportError) and "tensorboard" in text:  # parts of ours say it themselves
        return (
            f"{path}: {name} needs the package tensorboard, which is not installed; "
            "pip install 'llm-train[tensorboard]'"
        )
    return f"{path}: {name} refuses its settings: {text}"


class Exchange(NamedTuple):
    """One class in the place of another.

    Attributes:
        path: key of the class.
        before: the class that earlier layers named.
        now: the class that this one names.
        layer: number of the file or option.
    """

    path: str
    before: type
    now: type
    layer: int

    def note(self, given: Mapping[str, int]) -> str:
        """What became of the arguments; "" if there were none.

        Args:
            given: the layer in which each key was last given.
        """
        prefix = f"{self.path}.init_args."
        earlier = [key for key, layer in given.items() if layer < self.layer]
        names = [key.removeprefix(prefix) for key in earlier if key.startswith(prefix)]
        names = [name for name in names if "." not in name and "[" not in name]
        known = schema.settings_of(self.now)
        fates = {
            "keeps": [name for name in names if name in known],
            "drops": [name for name in names if name not in known],
        }
        said = " and ".join(f"{fate} {', '.join(those)}" for fate, those in fates.items() if those)
        exchanged = f"{self.path}={self.now.__name__} in the place of {self.before.__name__}"
        return said and f"{exchanged} {said}; set {prefix}NAME for other values"


def prefixed(
    path: str, text: str, name: str = "", known: Collection[str] = (), inner: str = ""
) -> str:
    """Puts the key of a part before what it says, or that of the setting it begins with.

    Args:
        path: key of the part.
        text: what the part says.
        name: of its class.
        known: its settings.
        inner: the key below which they stand.

    >>> prefixed("model.network", "layers that differ")
    'model.network: layers that differ'
    >>> prefixed("model.optimizer", "optimizer.eps=-1 is not > 0", "", ["eps"], "a.b")
    'a.b.eps=-1 is not > 0'
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
    setting = re.match(r"\w*(?=[=.[])", text)
    return f"{inner}.{text}" if setting and setting[0] in known else f"{path}: {text}"
