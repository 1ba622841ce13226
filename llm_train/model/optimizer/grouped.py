"""Learning rates, decay and clipping of their own for parameters whose names match a pattern.

What is unusual: it wraps any optimizer and knows none. The groups that the other has built are cut
into smaller ones before there is any state, so that Muon's stay Muon's and AdamW's stay AdamW's.
Patterns are those of a shell, where ``*`` also matches dots: ``layers.*.attention.*``. Of several
that match, the last one counts.

``base_width`` transfers rates between widths as maximal update parametrisation has it (Yang et al.,
*Tensor Programs V*, arXiv:2203.03466, table 3, row "hidden weights", column "Adam LR": 1 / fan-in;
input weights and vectors: 1). Matrices in numbered layers get base_width / width, where the width
is that of the embeddings. Rates alone are not all of the table: the variances of initial weights
belong to ``model.network``, and the table's output row gives an untied head 1 / fan-in as well,
which a pattern can say (``rates: {head.weight: 0.25}``).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from torch import Tensor, nn, optim

from llm_train.context import Context, OptimizerTraits, Part
from llm_train.errors import ConfigError, check_at_least
from llm_train.model.optimizer.base import Optimizer
from llm_train.model.optimizer.groups import Group, Named, dimensions, full_shape
from llm_train.model.optimizer.muon_adamw import is_muons
from llm_train.runtime.patterns import holding, useless

_KEY = "model.optimizer.init_args"


@dataclass(frozen=True, kw_only=True)
class Grouped(Optimizer):
    """Another optimizer, with settings of their own for parameters by the pattern of their names.

    Attributes:
        optimizer: makes the updates.
        rates: pattern of names -> factor on the learning rate.
        decays: pattern of names -> weight decay in the place of the optimizer's, vectors included.
        clips: pattern of names -> largest norm of the gradients of all that it matches together;
            the global norm is clipped after that.
        base_width: width for which the rates were chosen; matrices in the layers get base_width /
            width times the rate (muP's rule for Adam). 0 changes nothing.
    """

    optimizer: Optimizer
    rates: Mapping[str, float] = field(default_factory=dict)
    decays: Mapping[str, float] = field(default_factory=dict)
    clips: Mapping[str, float] = field(default_factory=dict)
    base_width: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "base_width", prefix="optimizer.")
        if not (self.rates or self.decays or self.clips or self.base_width):
            raise ConfigError(
                "optimizer: Grouped has no effect without rates, decays, clips or base_width; set "
                f"one of them, or use {type(self.optimizer).__name__} by itself"
            )
        for name in ("rates", "decays", "clips"):
            for pattern, value in getattr(self, name).items():
                least = "above 0" if name == "clips" else "at least 0"
                if not 0.0 <= value < float("inf") or (name == "clips" and not value):
                    raise ConfigError(
                        f"optimizer.{name}.{pattern}={value} must be finite and {least}"
                    )

    @property
    def traits(self) -> OptimizerTraits:
        """Those of the optimizer inside."""
        return self.optimizer.traits

    def parts(self) -> Iterator[Part]:
        """The optimizer inside, which is asked for its problems by itself."""
        yield self.optimizer

    def state_bytes(self, name: str, parameter: Tensor) -> float:
        """As the optimizer inside has it."""
        return self.optimizer.state_bytes(name, parameter)

    def problems(self, context: Context) -> Iterator[str]:
        """Patterns that match nothing, and settings that would have no effect or the wrong one."""
        names = [name for name, parameter in context.parameters if parameter.requires_grad]
        for setting in ("rates", "decays", "clips"):
            for pattern, fits in useless(getattr(self, setting), names):
                fault = (
                    f"no parameter matches {pattern}; near it: {', '.join(_near(pattern, names))}"
                )
                if fits:
                    fault = (
                        f"later patterns match all that {pattern} does; remove it, or move it down"
                    )
                yield f"{_KEY}.{setting}: {fault}"
        size = self.traits.update_size
        if self.base_width and size in ("gradient", "layer"):
            yield (
                f"{_KEY}.base_width={self.base_width} is muP's rule for Adam, and an update of "
                f"{self.traits.name} follows the size of the {size}; remove it, or use AdamW"
            )
        if self.clips and (context.strategy.flattens or context.update == "backward"):
            yield (
                f"{_KEY}.clips cannot see gradients that {context.strategy.name} clips itself or "
                "that model.update=backward frees; remove it, or use ddp or fsdp with "
                "model.update=step"
            )
        if self.decays and any(
            "weight_decay" not in g for g in context.torch_optimizer.param_groups
        ):
            yield (
                f"{_KEY}.decays has no effect: {type(context.torch_optimizer).__name__} has no "
                "weight decay; remove it"
            )

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer inside and cuts its groups.

        Raises:
            ConfigError: the network's width cannot be told.
        """
        named = list(named_parameters)
        built = self.optimizer.build(named)
        names = {id(parameter): name for name, parameter in reversed(named)}
        hidden = self.base_width / _width(named) if self.base_width else 1.0
        cut: list[Group] = []
        for group in built.param_groups:
            parts: dict[tuple[tuple[str, object], ...], list[Named]] = defaultdict(list)
            parts[()] = []  # what no pattern matches comes first
            for parameter in group["params"]:
                pair = names[id(parameter)], parameter
                parts[self._own(pair, hidden)].append(pair)
            cut += [_part(group, dict(own), pairs) for own, pairs in parts.items() if pairs]
        built.param_groups[:] = cut
        return built

    def _own(self, pair: Named, hidden: float) -> tuple[tuple[str, object], ...]:
        """Settings of a parameter that its group does not have."""
        name, _ = pair
        factor = self.rates.get(holding(self.rates, name), 1.0)
        factor *= hidden if is_muons(*pair) else 1.0
        decay = self.decays.get(holding(self.decays, name), -1.0)
        clip = holding(self.clips, name)
        own: Group = {}
        own |= {"rate_factor": factor} if factor != 1.0 else {}
        own |= {"weight_decay": decay} if decay >= 0.0 else {}
        own |= {"clip_pattern": clip, "clip_norm": self.clips[clip]} if clip else {}
        return tuple(own.items())


def _part(group: Group, own: Group, pairs: list[Named]) -> Group:
    """Some parameters of a group, with settings of their own; nothing is shared with others."""
    names, parameters = map(list, zip(*pairs, strict=True))
    rate = group["lr"] * own.get("rate_factor", 1.0)
    return {**group, **own, "lr": rate, "params": parameters, "param_names": names}


def _width(named: Sequence[Named]) -> int:
    """Columns of the tables and heads outside the layers."""
    tables = [full_shape(p) for name, p in named if dimensions(p) == 2 and not is_muons(name, p)]
    widths = {shape[1] for shape in tables}
    if len(widths) != 1:
        raise ConfigError(
            f"optimizer.base_width needs one width, and the matrices outside numbered layers have "
            f"{sorted(widths) or 'none'}; name factors by pattern in optimizer.rates instead"
        )
    return int(widths.pop())


def _near(pattern: str, names: list[str]) -> list[str]:
    """Names, or patterns of names, that look like ``pattern``."""
    known = list(dict.fromkeys([*(re.sub(r"\b\d+\b", "*", name) for name in names), *names]))
    return get_close_matches(pattern, known, cutoff=0.3) or known[:3]
