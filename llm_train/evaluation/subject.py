"""A network that is asked in words, while it trains or from a checkpoint.

Sharded weights are gathered by whoever enters a module, so all ranks of a run ask together: each
question is the same number of forwards on all of them, whatever a rank finds in the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel
from llm_train.model.network.confined import DocumentView, confine, last_document
from llm_train.model.network.sample import generate


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an evaluation knows of a network.

    Attributes:
        network: on its devices; whether it trains is left as it is.
        tokenizer: of the text that it learned.
        end_of_text: the id between documents; ``NO_TOKEN`` where there is none.
        documents: whether it learned to look beyond one.
        positions: most that it reads.
        device: where it reads tokens.
        rank: of this process.
        ranks: that ask together; each scores a share.
        total: sums a tensor over them, in place.
        precision: context of a forward.
        alive: called between two forwards.
    """

    network: LanguageModel
    tokenizer: Tokenizer
    end_of_text: int
    documents: DocumentView
    positions: int
    device: torch.device
    rank: int = 0
    ranks: int = 1
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    alive: Callable[[], None] = lambda: None

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Evaluates without gradients; eagerly, since each length would be compiled anew."""
        training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), self.precision():
                yield
        finally:
            self.network.train(training)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, V) logits of each next token."""
        self.alive()
        given = {}
        if self.documents == "confined":
            given = {"documents": confine(tokens, self.end_of_text, blocks=False)}
        with self._asked():
            found: Tensor = self.network(tokens, lambda h, head: head.logits(h), **given)
        return found

    def continued(
        self,
        start: list[int],
        *,
        tokens: int,
        temperature: float = 0.0,
        until: Sequence[str] = (),
        seed: int = 0,
    ) -> str:
        """What follows ``start``, up to an end of text or any of ``until``."""
        if self.documents == "confined":
            start = last_document(start, self.end_of_text)
        said, text = list(start), ""
        before, ended = len(self.tokenizer.decode(start)), False
        with self._asked():
            for token in generate(
                self.network,
                torch.tensor(start),
                max_new_tokens=tokens,
                temperature=temperature,
                seed=seed,
            ):
                self.alive()
                ended |= token == self.end_of_text
                if not ended:
                    said.append(token)
                    text = self.tokenizer.decode(said)[before:]
                    ended = any(stop in text for stop in until)
                if ended and self.ranks == 1:
                    break
        for stop in until:
            text = text.partition(stop)[0] if stop else text
        return text


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """As training saw text: without what a template would put around it.

    Raises:
        ConfigError: the tokenizer lacks a character.
    """
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception as error:  # the library raises a bare one
        raise ConfigError(
            f"the text {text[:60]!r} cannot be encoded by this network's tokenizer ({error}); "
            "use characters that its corpus had"
        ) from None
