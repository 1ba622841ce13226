"""Secrets stay out of a configuration, since a run copies it into each of its records.

``config.yaml``, every checkpoint and every logger hold the resolved configuration. So a key that
looks secret takes the name of an environment variable, ``${NAME}``, and the value is put in its
place when the part is built, after the text for the records was made.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_train.errors import ConfigError

_SECRET = re.compile(
    r"(^|_)(secret|password|passwd|passphrase|credentials?|(api|access|private|secret)_?key)(_|$)"
    r"|^token$|(^|_)(auth|access|api|bearer|hf|hub|session|refresh|login)_?token$"
)
_REFERENCE = re.compile(r"^\$\{(\w+)\}$")
_PASSWORD_IN_URL = re.compile(r"://[^/@\s:]*:[^/@\s]+@")


def literals(value: object, path: str = "", *, secret: bool = False) -> Iterator[str]:
    """Every secret that is written out below ``value``, as a line that does not repeat it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{path}.{key}" if path else str(key)
            # A number at "token" is a slip for a count of tokens, and is told so as one.
            own = looks_secret(str(key)) and not (key == "token" and isinstance(inner, int))
            yield from literals(inner, place, secret=secret or own)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from literals(inner, f"{path}[{index}]", secret=secret)
    elif isinstance(value, bool) or value in (None, ""):
        return
    elif secret and not _REFERENCE.match(str(value)):
        yield (
            f"{path} is a secret, which would be copied into config.yaml, checkpoints and loggers; "
            "remove it where the service reads a variable of its own (WANDB_API_KEY), else write "
            "'${NAME}', and put the secret into the environment variable NAME"
        )
    elif isinstance(value, str) and _PASSWORD_IN_URL.search(value):
        yield (
            f"{path} has a password in its address, which would be copied into config.yaml and "
            "checkpoints; leave it out, and configure it where that service is logged into"
        )


def looks_secret(key: str) -> bool:
    """Whether what stands at a key is nobody else's business.

    >>> [looks_secret(key) for key in ("api_key", "hf_token", "apiKey", "tokens", "pad_token")]
    [True, True, True, False, False]
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).replace("-", "_")
    return _SECRET.search(words.lower()) is not None


def revealed(settings: Mapping[str, Any], *, secret: bool = False) -> dict[str, Any]:
    """The settings of a part with the values of the environment variables that they name.

    Raises:
        ConfigError: such a variable is not set.
    """
    return {k: _revealed(v, k, secret=secret or looks_secret(str(k))) for k, v in settings.items()}


def _revealed(value: object, key: str, *, secret: bool) -> object:
    if type(value) is dict:
        return revealed(value, secret=secret)
    if type(value) is list:
        return [_revealed(inner, key, secret=secret) for inner in value]
    if secret and isinstance(value, str) and (match := _REFERENCE.match(value)):
        if match[1] not in os.environ:
            raise ConfigError(f"{key}={value}: the environment variable {match[1]} is not set")
        return os.environ[match[1]]
    return value
