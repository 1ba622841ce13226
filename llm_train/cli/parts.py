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
from llm_train.errors import LLMTrainError
from llm_train.unknown import Undecided, Unknown, known

_FAILED = object()  # Unknown while the parser, which looks at everything, has it in its hands


class Builder:
    """Calls classes until ``finish``; deferred calls after that are passed on unchanged.

    Args:
        chosen: the class at each key, in order.
        owners: keys below which settings stand.
        unknown: settings that are wrong or missing.

    Attributes:
        failures: what could not be built, and why, by the line that says so.
    """

    def __init__(
        self, chosen: Mapping[str, type], owners: Collection[str], unknown: Collection[str]
    ) -> None:
        self._chosen = dict(chosen)
        self._owners = owners
        self._unknown = unknown
        self.failures: dict[str, Exception] = {}
        self._collecting = True

    def __call__(self, kind: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """Builds ``kind``, as far as that does not depend on what is unknown."""
        if not self._collecting:
            return kind(*arguments, **revealed(settings))
        place = next((key for key, chosen in self._chosen.items() if chosen is kind), "")
        self._chosen.pop(place, None)
        if schema.part_of(place) in self._unknown:
            return _FAILED
        inner = f"{place}.init_args"
        inner = inner if inner in self._owners else place
        given = self.given(inner, settings)
        whole = not (self._unknown or self.failures) or known(given)
        if not whole and not kind.__module__.startswith("llm_train"):
            return _FAILED  # nobody knows what others do with it
        try:
            return kind(*arguments, **revealed(given))
        except Undecided:
            return _FAILED
        except Exception as error:  # whatever a named class raises is about its settings
            # Of one that made another of it, nobody knows whether what is unknown caused it.
            if whole or (isinstance(error, LLMTrainError) and error.__context__ is None):
                self.failures[_describe(place, inner, kind, error)] = error
            return _FAILED

    def given(self, path: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings, with ``Unknown`` for those that are wrong, missing, or could not be built."""
        start = f"{path}." if path else ""
        return {
            name: Unknown() if f"{start}{name}" in self._unknown else _judged(value)
            for name, value in values.items()
        }

    def finish(self) -> None:
        """Ends the collection: what is built from now on raises its own errors."""
        self._collecting = False


def _judged(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_judged, value))
    if isinstance(value, dict):
        return {key: _judged(item) for key, item in value.items()}
    return Unknown() if value is _FAILED else value


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
