"""A checkpoint as a network that computes: weights, settings and tokenizer, without a Trainer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from llm_train.checkpoint.compatibility import load_weights
from llm_train.checkpoint.store import CheckpointStore
from llm_train.data.base import NO_TOKEN
from llm_train.data.tokenizer.tokenizer_file import load_tokenizer
from llm_train.errors import CheckpointError, ConfigError
from llm_train.evaluation.subject import Subject
from llm_train.model.network.base import LanguageModel
from llm_train.model.network.confined import confine, last_document
from llm_train.model.network.init import materialise
from llm_train.model.network.meta import without_parameters
from llm_train.model.network.sample import generate
from llm_train.runtime.devices import kind_called
from llm_train.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A trained network and what belongs to it.

    Attributes:
        path: directory of the checkpoint.
        settings: the configuration it was trained with.
        network: the module, in evaluation mode.
    """

    path: Path
    settings: Settings
    network: LanguageModel

    @property
    def name(self) -> str:
        """Of the run's directory."""
        return self.path.resolve().parent.parent.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the network was trained with.

        Raises:
            CheckpointError: it was trained on token ids that mean no text.
        """
        return load_tokenizer(self._tokenizer_file())

    def _tokenizer_file(self) -> Path:
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{self.path} holds no tokenizer.json, so its token ids mean no text: it was "
                "trained on tokens without a tokenizer"
            )
        return file

    def end_of_text(self) -> int | None:
        """The id that followed each document in training; None where none did."""
        source = self.settings.data.source
        # Other tokens may have taken the place of those that the network was trained on.
        if source.prepared and source.tokenizer_text() == self._tokenizer_file().read_text("utf-8"):
            return None if (found := source.end_of_text()) == NO_TOKEN else found
        boundary = self.settings.data.recipe.boundary
        return self.tokenizer.token_to_id(boundary) if boundary else None

    @property
    def subject(self) -> Subject:
        """The network as whoever asks it in words needs it."""
        end = self.end_of_text()
        return Subject(
            network=self.network,
            tokenizer=self.tokenizer,
            end_of_text=NO_TOKEN if end is None else end,
            positions=self.settings.task.network_config.max_positions,
            confined=self.settings.task.documents == "confined",
            device=next(self.network.parameters()).device,
        )

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, V) logits of each next token."""
        tokens, given = tokens.to(next(self.network.parameters()).device), {}
        if self.settings.task.documents == "confined":
            end = self.end_of_text()
            assert end is not None, "training needed it"
            given = {"documents": confine(tokens, end, blocks=False)}
        found: Tensor = self.network(tokens, lambda h, projection: projection.logits(h), **given)
        return found

    def generate(
        self,
        prompt: str = "",
        *,
        tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: str = "",
        seed: int = 0,
    ) -> Iterator[str]:
        """Continues a prompt; yields text as soon as it is whole characters.

        Args:
            prompt: the text to continue.
            tokens: most tokens to add.
            temperature: divides the logits; 0 takes the likeliest token each time.
            top_k: choose among this many likeliest tokens; 0 means all.
            top_p: choose among the likeliest tokens that together have this probability.
            stop: text of the token that ends the sample; "" is the end of a text.
            seed: of the choices.

        Raises:
            ConfigError: a value out of range, a prompt that is longer than the network's context,
                or ``stop`` is not a single token.
        """
        if tokens < 0:
            raise ConfigError(f"--tokens={tokens} must be at least 0")
        tokenizer = self.tokenizer
        end = tokenizer.token_to_id(stop) if stop else self.end_of_text()
        if stop and end is None:
            raise ConfigError(f"--stop {stop!r} is not a single token of this tokenizer")
        start = self.start(prompt)
        stream = generate(
            self.network,
            torch.tensor(start),
            max_new_tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=end,
            seed=seed,
        )
        text = Text(tokenizer, start if prompt else [])
        return filter(None, map(text.add, stream))

    def start(self, prompt: str) -> list[int]:
        """The ids that a text begins with: those of ``prompt``, or the end of another text.

        Raises:
            ConfigError: it cannot be encoded, or is longer than the network's context.
        """
        start, most = self.subject.start(prompt), self.subject.positions
        if self.settings.task.documents == "confined":
            start = last_document(start, self.end_of_text())
        if len(start) > most:
            raise ConfigError(
                f"the prompt has {len(start)} tokens, and this network reads {most}; "
                "shorten --prompt"
            )
        return start


def load_checkpoint(
    where: str | Path, load: Callable[[Sequence[str]], Settings], device: str = "auto"
) -> Pretrained:
    """Builds the network of a checkpoint and reads its weights, whatever strategy wrote them.

    Args:
        where: a checkpoint directory, or a run directory for its newest checkpoint.
        load: reads a configuration, here ``-c`` and the file that the checkpoint holds.
        device: auto, cpu, cuda, cuda:1 and so on.

    Raises:
        CheckpointError: no complete checkpoint, or one that does not fit its configuration.
        ConfigError: a device that cannot be used.
    """
    path, settings = open_checkpoint(where, load)
    with without_parameters():
        network = settings.task.network_config.build()
    materialise(network, _device(device))
    load_weights(path, network)
    return Pretrained(path=path, settings=settings, network=network.eval())


def open_checkpoint(
    where: str | Path, load: Callable[[Sequence[str]], Settings]
) -> tuple[Path, Settings]:
    """The directory of a checkpoint, and the configuration that it was trained with.

    Args:
        where: a checkpoint directory, or a run directory for its newest checkpoint.
        load: reads a configuration.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    path = CheckpointStore(Path(".")).resolve(where).path  # of this store only "auto" would speak
    assert path is not None
    return path, load(["-c", str(path / "config.yaml")])


class Text:
    """Text that grows by tokens; decoding single tokens would lose split characters.

    Args:
        tokenizer: of the tokens.
        before: what the first of them follows.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(before)
        self._shown = tokenizer.decode(self._tokens)

    def add(self, token: int) -> str:
        """What is now known in whole characters; "" while the other half of one is missing."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith("\ufffd"):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device(kind_called("auto").type)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {name} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    return device
