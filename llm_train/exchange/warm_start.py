"""A run that begins with weights from elsewhere: of another run, or of a Hugging Face folder.

Weights alone: step, optimizer, schedule and data are the new run's. Each parameter is first drawn
as in any run, a function of (seed, name), and what the source has of it is then written over it.
Rows that a larger vocabulary or position table adds are therefore those of the network's own rule,
and every strategy gets its part of the same whole parameter, one at a time.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_train.context import Context
from llm_train.errors import ConfigError, LLMTrainError, check_at_least
from llm_train.exchange.widening import narrower, obstacles, widened
from llm_train.model.network.base import Network
from llm_train.model.network.init import Start, as_drawn, canonical_name
from llm_train.model.network.meta import without_memory
from llm_train.runtime.patterns import useless

# What may differ: sizes, which shapes show, and what the source's own beginning was like.
_OF_A_NEW_RUN = {
    *("vocab_size", "pad_vocab_to", "max_sequence", "layers", "width", "mlp_width", "dropout"),
    *("init", "init_std", "residual_init"),
}
_GROW = ("embedding", "head", "positions")
_BLOCK = re.compile(r"^layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Which weights a run begins with; a run that is resumed has its own.

    Args:
        path: a checkpoint, a run (its newest checkpoint) or a folder in Hugging Face's format; "":
            all weights are new.
        leave_out: patterns of the names of parameters that begin anew, as in head.* or
            layers.1?.*; what the source has and the network has not must be named here, too.
        stack: a deeper network begins with copies of the source's blocks, all of them in order and
            then all of them again (G_stack; Du et al. 2024, https://arxiv.org/abs/2405.15319).
            Its first loss is higher than the source's, and training makes up for it.
        widen: how many times as wide as the source's the network is, of which it begins as copies
            that compute the same (HyperCloning; Samragh et al. 2024,
            https://arxiv.org/abs/2409.12903). width, heads, kv_heads and mlp_width must be so many
            times the source's.
    """

    path: str = ""
    leave_out: tuple[str, ...] = ()
    stack: bool = False
    widen: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 1, "widen", prefix="init_from.")
        if self.path.startswith("preset:"):
            raise ConfigError(
                f"init_from.path={self.path} holds settings for -c and no weights; name a run here"
            )

    def problems(self, context: Context, network: Network) -> Iterator[str]:
        """Weights that are not there, and every parameter that does not fit.

        Args:
            context: of the run.
            network: its configuration.
        """
        if not self.path:
            for key, default in (("leave_out", ()), ("stack", False), ("widen", 1)):
                if getattr(self, key) != default:
                    yield f"init_from.{key} has no effect without init_from.path; remove it"
            return
        from llm_train.exchange.weights import open_weights  # reads checkpoints: DTensor takes long

        if not (context.running or self.present):
            return  # it may be where the run will be
        try:
            source = open_weights(self.path)
            there = source.shapes
        except LLMTrainError as error:
            yield f"init_from.path: {error}"
            return
        built = context.network
        if self.widen > 1:
            if found := "; ".join(obstacles(network, self.widen, source.arguments)):
                yield f"init_from.widen={self.widen} does not work with {found}; change it"
                return
            with without_memory():
                built = narrower(network, self.widen).build()
        here = {canonical_name(n): tuple(p.shape) for n, p in built.named_parameters()}
        for name in here.keys() & {"embedding.weight", "head.weight"}:  # without rows that pad
            here[name] = (min(here[name][0], context.token_ids), *here[name][1:])
        wrong = []
        if all(map(self._left_out, here)):
            yield "init_from.leave_out leaves nothing of init_from.path; remove init_from"
        for pattern, _ in useless(self.leave_out, [*here, *there]):
            yield f"init_from.leave_out: {pattern} leaves nothing out; correct it, or remove it"
        if self.stack and _blocks(here) <= _blocks(there):
            yield (
                f"init_from.stack needs a network that is deeper than that of {source.path}, which "
                f"has {_blocks(there)} blocks; remove it"
            )
        for name in [*here, *(name for name in there if name not in here)]:
            given = there.get(self._origin(name, there))
            if not self._left_out(name) and not _fits(name, given, here.get(name)):
                shapes = (shape or "absent" for shape in (given, here.get(name)))
                wrong.append("{} is {} there and {} here".format(name, *shapes))
        if wrong:
            yield (
                f"init_from.path={source.path} does not fit model.network, with {len(wrong)} "
                f"differences: {wrong[0]}; write the same network, or name in "
                "init_from.leave_out what is to begin anew"
            )

    @property
    def present(self) -> bool:
        """Whether the source is here, if there is one."""
        return not self.path or Path(self.path).exists()

    def notes(self, network: Mapping[str, Any]) -> Iterator[str]:
        """Settings of the source's network that no shape shows.

        Args:
            network: the class and arguments of the run's own.
        """
        if not self.path or not self.present:
            return
        from llm_train.exchange.weights import open_weights

        there, here = open_weights(self.path).arguments, network.get("init_args", {})
        shown = _OF_A_NEW_RUN if self.widen == 1 else {*_OF_A_NEW_RUN, "heads", "kv_heads"}
        for key in sorted((there.keys() & here.keys()) - shown):
            if _plain(there[key]) != _plain(here[key]):
                yield (
                    f"model.network.init_args.{key}={here[key]}, and the network of init_from.path "
                    f"was trained with {there[key]}; write that one unless you mean to change it"
                )

    def start(self, network: Network) -> Start:
        """What writes the source's parameters over new ones; nothing where there is no source.

        Args:
            network: configuration of the run's own.
        """
        if not self.path:
            return as_drawn
        from llm_train.exchange.weights import open_weights

        source = open_weights(self.path)

        def write(name: str, full: Tensor) -> None:
            if not self._left_out(name):
                given = source.read(self._origin(name, source.shapes))
                if self.widen > 1:
                    given = widened(network, self.widen, name, given, full)
                full[: given.shape[0]] = given

        return write

    def _origin(self, name: str, there: Iterable[str]) -> str:
        """The source's name of what a parameter begins with."""
        if not self.stack:
            return name
        return _BLOCK.sub(lambda block: f"layers.{int(block[1]) % _blocks(there)}.", name)

    def _left_out(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.leave_out)


def _plain(value: Any) -> object:
    """A class in the place of its path, which may be short."""
    if isinstance(value, Mapping) and "class_path" in value:
        return value["class_path"].rpartition(".")[2], value.get("init_args")
    return value


def _blocks(names: Iterable[str]) -> int:
    return 1 + max((int(found[1]) for name in names if (found := _BLOCK.match(name))), default=-1)


def _fits(name: str, there: tuple[int, ...] | None, here: tuple[int, ...] | None) -> bool:
    """Equal shapes, or more rows of a table here."""
    if there is None or here is None or name.split(".")[-2:][0] not in _GROW:
        return there == here
    return there[1:] == here[1:] and there[0] <= here[0]
