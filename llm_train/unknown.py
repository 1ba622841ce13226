"""What stands in for a setting that is wrong or missing, so that the others can still be judged.

Where one setting is wrong, a rule about others may hold or not, whatever that one is mended to. So
rules are asked all the same, and one that would decide by the wrong setting ends in ``Undecided``
instead: nobody hears of a problem that goes away with another.
"""

from collections.abc import Callable
from typing import NoReturn, TypeVar

_Value = TypeVar("_Value")


class Undecided(BaseException):
    """Ends a judgement that would go by an unknown setting.

    It is no ``Exception``, so that code which takes any of these for an answer does not take it.
    """


def _undecided(*_: object) -> NoReturn:
    raise Undecided


class Unknown:
    """It may be handed on and asked for attributes, which are unknown as well, and no more."""

    __class__ = property(_undecided)  # isinstance decides by it

    def __getattr__(self, name: str) -> "Unknown":
        if name.startswith("__"):
            raise AttributeError(name)
        return self


_DECISIONS = """
bool eq hash repr iter call len contains getitem lt le gt ge int float index fspath
add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow neg
"""
for _name in _DECISIONS.split():
    setattr(Unknown, f"__{_name}__", _undecided)


def known(part: object) -> bool:
    """Whether nothing in a part, however deep, is unknown."""
    if type(part) is Unknown:
        return False
    if isinstance(part, list | tuple | dict):
        return all(map(known, part.values() if isinstance(part, dict) else part))
    ours = type(part).__module__.startswith("llm_train")
    inner: dict[str, object] = getattr(part, "__dict__", {}) if ours else {}
    return all(map(known, inner.values()))


def tried(value: Callable[[], _Value]) -> _Value:
    """A value, unless it goes by an unknown one."""
    try:
        return value()
    except Undecided:
        return Unknown()  # type: ignore[return-value]
