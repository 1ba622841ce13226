"""What a request may say, and all texts that are asked for at one time, continued together.

A text joins at the next token after it was asked for. One that has ended, or whose reader is gone,
stays in the forward until another joins or half of them have ended, since a change of the texts
costs reading all of them again. One thread computes; the event loop does all the rest, so that
nothing needs a lock.

Requests have OpenAI's names. What would have no effect here is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException

from llm_train.model.network.sample import RaggedBatch, RaggedText, cached
from llm_train.run.pretrained import Pretrained, Text

Piece = dict[str, Any]
"""What is new of a text, as an entry of OpenAI's ``choices``."""


@dataclass(eq=False)
class Choice(RaggedText):
    """A text of an answer.

    Attributes:
        index: among the texts of the answer.
        request: when the text ends.
        end: token that ends it, too.
        text: what its tokens mean.
        news: where pieces go, and an error that ends the answer.
        tokens: of it so far.
        ended: whether it needs no more of them.
        held: text that may be the beginning of a stop.
    """

    index: int
    request: Request
    end: int | None
    text: Text
    news: asyncio.Queue[Piece | HTTPException]
    tokens: int = 0
    ended: bool = False
    held: str = ""

    def take(self, token: int) -> None:
        """Adds a token, and tells what of the text is certain."""
        finish, stops = "stop", self.request.stop or []
        if token != self.end:
            self.tokens += 1
            self.held += self.text.add(token)
            finish = "length" if self.tokens == self.request.max_tokens else ""
        certain = len(self.held) if finish else len(self.held) - max(map(len, stops), default=1) + 1
        if found := [place for stop in stops if (place := self.held.find(stop)) >= 0]:
            finish, certain = "stop", min(found)
        text, self.held = self.held[: max(0, certain)], self.held[max(0, certain) :]
        self.ended = finish != ""
        piece = {"index": self.index, "text": text, "logprobs": None}
        self.news.put_nowait(piece | {"finish_reason": finish or None})


class Engine:
    """Continues choices from when they are added until they have ended.

    Args:
        pretrained: the network.
        most: texts in one forward; others wait until one has ended.
    """

    def __init__(self, pretrained: Pretrained, most: int) -> None:
        self._network = cached(pretrained.network)
        masks = pretrained.settings.task.network_config.document_masks
        self._most = most if masks != "none" else 1
        self._choices: list[Choice] = []
        self._working: asyncio.Task[None] | None = None

    async def pieces(self, choices: list[Choice]) -> AsyncGenerator[Piece]:
        """What is new of the texts of one answer, as it is known."""
        self._choices += choices
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        news = choices[0].news
        try:
            while not (all(choice.ended for choice in choices) and news.empty()):
                piece = await news.get()
                if isinstance(piece, HTTPException):
                    raise piece
                yield piece
        finally:
            for choice in choices:
                choice.ended = True

    def end(self, error: HTTPException) -> None:
        """Tells the readers of all texts that these end here."""
        for choice in self._choices:
            choice.ended = True
            choice.news.put_nowait(error)

    async def _work(self) -> None:
        batch, group = RaggedBatch(self._network), list[Choice]()
        while now := self._choices[: self._most]:
            if any(choice not in group for choice in now) or 2 * len(now) <= len(group):
                group = now
            try:
                tokens = await asyncio.to_thread(batch.step, [*group])
                for choice, token in zip(group, tokens, strict=True):
                    if not choice.ended:
                        choice.take(token)
            except Exception as error:  # there is no memory, say
                logging.getLogger(__name__).exception("all texts end here")
                self.end(HTTPException(500, f"{type(error).__name__}: {error}"))
                batch, group = RaggedBatch(self._network), []
            self._choices = [choice for choice in self._choices if not choice.ended]


class Request(BaseModel):
    """A request for texts; ``top_k`` is not one of OpenAI's names."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    prompt: list[str] = Field([""], min_length=1)
    max_tokens: int = Field(16, ge=1)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=0, lt=2**62)
    stop: list[Annotated[str, Field(min_length=1)]] | None = Field(None, max_length=4)
    stream: bool = False
    # Clients write these where they mean nothing by them.
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logprobs: None = None

    @field_validator("prompt", "stop", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """One text is a list of one."""
        return [value] if isinstance(value, str) else value
