"""The errors that a user can cause, with one class for each kind of input.

Every message is one line that names the key, the value, the rule and the way out. The command line
prints the message as it is, without a traceback. Any other exception that escapes becomes one line
as well, and its traceback goes to a file of the run.
"""

import importlib.util
import math
from typing import Literal, get_args, get_origin, get_type_hints


class LLMTrainError(Exception):
    """The base of every error whose message is meant for the person who typed the command.

    Attributes:
        alone: whether other ranks have not failed in the same way, so that this one must speak.
    """

    alone = False


class ConfigError(LLMTrainError, ValueError):
    """Reports a setting, or a combination of settings, that cannot be run."""


class DataError(LLMTrainError, RuntimeError):
    """Reports a corpus, tokenizer or token shard that is missing, damaged or not as configured."""


class CheckpointError(LLMTrainError, RuntimeError):
    """Reports a checkpoint that is missing, incomplete or damaged, or that does not fit the run."""


def line_of(error: BaseException) -> str:
    """What an error of a library says, on one line, or its name."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check_choices(config: object, prefix: str = "") -> None:
    """Refuses a field whose value is not in its ``Literal``; a script does not pass the parser.

    Args:
        config: a dataclass.
        prefix: what comes before the field's name in the message.
    """
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            allowed = ", ".join(map(str, get_args(hint)))
            raise ConfigError(f"{prefix}{name}={getattr(config, name)!r} is not one of {allowed}")


def check_at_least(
    config: object,
    least: int,
    *names: str,
    below: float = math.inf,
    prefix: str = "",
    hint: str = "",
) -> None:
    """Refuses fields that are not in [least, below), infinite ones and NaN included.

    Args:
        config: a dataclass.
        least: the least value.
        *names: of the fields, whose values are numbers.
        below: all values are below it.
        prefix: what comes before the field's name in the message.
        hint: what the values mean, or which one to take.
    """
    for name in names:
        value = getattr(config, name)
        if not least <= value < below:  # NaN is in no interval
            rule = f"at least {least}" + (f" and below {below}" if below < math.inf else "")
            rule = rule if math.isfinite(value) else f"finite, {rule}"
            raise ConfigError(f"{prefix}{name}={value} must be {rule}{hint}")


def missing_package(package: str, extra: str, key: str) -> str:
    """The problem of ``key`` where a package is not installed that ``extra`` brings; else ""."""
    if importlib.util.find_spec(package) is not None:
        return ""
    remedy = f"pip install 'llm-train[{extra}]'"
    return f"{key} needs the package {package}, which is not installed: {remedy}"
