"""Packages that only some settings need, each imported when it is used."""

from importlib import import_module
from typing import Any

from llm_train.errors import ConfigError


def library(name: str, extra: str, what: str = "this setting") -> Any:
    """A module of such a package.

    Args:
        name: of the module.
        extra: of this package, which installs the other.
        what: needs it, in words.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"{what} needs the package {package}; run pip install 'llm-train[{extra}]'"
        ) from error
