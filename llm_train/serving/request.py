"""What a request may say, by OpenAI's names. What would have no effect here is refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


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
