"""What a verb is. Its file holds one subclass and is found by its name; nothing lists the verbs.

The first line of the file's docstring is the verb's summary. Files of verbs import what is heavy
inside ``run``, because a misspelt flag must not cost the import of torch.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from llm_train.data.preparation import DataOptions
    from llm_train.settings import Settings


class Load(Protocol):
    """Reads a configuration from arguments of the command line: ``-c FILE`` and ``--key=value``."""

    def __call__(self, arguments: Sequence[str], /) -> Settings:
        """What the arguments say."""

    def data(self, arguments: Sequence[str], /) -> DataOptions:
        """What they say of the data, without torch where everything else is certainly sound."""

    def schema(self) -> Mapping[str, Any]:
        """What any configuration may say, as a JSON schema."""


class Verb(ABC):
    """One thing that the command line does.

    Attributes:
        reads: settings, where ``-c FILE`` and ``--key=value`` belong to it, which are then in
            ``flags.settings``; checkpoint, where it builds what another configuration names, so
            that imports may be allowed; files, where it builds nothing.
    """

    reads: ClassVar[Literal["settings", "checkpoint", "files"]] = "settings"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 - most have none
        """Adds the options that are not settings."""

    @abstractmethod
    def run(self, flags: argparse.Namespace, load: Load) -> int | None:
        """Does it; returns the exit status, or nothing where that is 0.

        Args:
            flags: what was given.
            load: reads a configuration from arguments such as ``flags.settings``.
        """
