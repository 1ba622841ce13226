"""A class that a later file or option puts in the place of another one, and its arguments.

The parser hands on the arguments that the new class knows, also where they mean something else to
it, as a learning rate does, and drops all others. Neither may happen without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llm_train.cli import schema


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
