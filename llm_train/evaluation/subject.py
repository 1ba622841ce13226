"""A network that is asked in words, while it trains or from a checkpoint.

Sharded weights are gathered by whoever enters a module, so all ranks of a run ask together: each
question is the same number of forwards on all of them, whatever a rank finds in the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from tokenizers import Tokenizer
from torch import Tensor

from llm_train.data.base import NO_TOKEN
from llm_train.data.tokenizer.tokenizer_file import encoded
from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel
from llm_train.model.network.sample import generate


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What whoever asks knows of a network.

    Attributes:
        network: on its devices, in evaluation mode while it is asked.
        tokenizer: of the text that it learned.
        end_of_text: the id between documents; ``NO_TOKEN`` where there is none.
        positions: most that it reads.
        confined: it learned each document by itself, the first token from nothing.
        device: where it reads tokens.
        rank: of this process.
        ranks: that ask together; each scores a share.
        total: sums a tensor over them, in place.
        alive: called between two forwards.
    """

    network: LanguageModel
    tokenizer: Tokenizer
    end_of_text: int
    positions: int
    device: torch.device
    confined: bool = False
    rank: int = 0
    ranks: int = 1
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor
    alive: Callable[[], None] = lambda: None

    @property
    def boundary(self) -> int:
        """What a text begins after.

        Raises:
            ConfigError: training had no such token.
        """
        if self.end_of_text == NO_TOKEN:
            raise ConfigError(
                "an empty text begins after the end of another, and this network was trained "
                "without a token for that; give a --prompt, or tasks with a context"
            )
        return self.end_of_text

    def start(self, text: str) -> list[int]:
        """What leads to the continuation of ``text``."""
        return encoded(self.tokenizer, text) or [self.boundary]

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, V) logits of each next token."""
        self.alive()
        found: Tensor = self.network(tokens, lambda hidden, head: head.logits(hidden))
        return found

    def continued(
        self, text: str, *, tokens: int, temperature: float = 0.0, until: Sequence[str] = ()
    ) -> str:
        """What follows ``text``, up to an end of text or any of ``until``."""
        start = self.start(text)[-max(1, self.positions - tokens) :]
        found = []
        for token in generate(
            self.network, torch.tensor(start), max_new_tokens=tokens, temperature=temperature
        ):
            self.alive()
            found.append(token)
        kept = takewhile(lambda token: token != self.end_of_text, found)
        said = self.tokenizer.decode([*start, *kept])[len(self.tokenizer.decode(start)) :]
        for stop in filter(None, until):
            said = said.partition(stop)[0]
        return said
