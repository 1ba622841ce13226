"""What a network must offer so that losses, recomputation and sharding can treat it as a black box.

Two classes, because two things differ: ``Network`` is the configuration (a frozen dataclass that
YAML fills in) and ``LanguageModel`` is the torch module it builds.

Shapes: B batch, T positions, D width, V vocabulary (padded).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from llm_train.context import Context, Part
from llm_train.errors import ConfigError
from llm_train.model.network.confined import Masks
from llm_train.model.network.fused import FusedBytes
from llm_train.model.projection import Projection, R, Readout

__all__ = ["ForwardFlops", "Initial", "LanguageModel", "Network", "Projection", "R", "Readout"]


class Initial(NamedTuple):
    """Distribution of one parameter at step 0: normal around ``mean`` with ``std`` (0: constant).

    Attributes:
        mean: centre of the normal distribution.
        std: its standard deviation; 0 makes every value ``mean``.
        rows: number of leading rows it applies to, later ones (vocabulary padding) start at zero; 0
            means all rows.
        shape: changes these rows in place after they are drawn, for other distributions; None
            leaves them.
    """

    mean: float
    std: float
    rows: int = 0
    shape: Callable[[Tensor], None] | None = None


class ForwardFlops(NamedTuple):
    """Floating point operations of one sample's forward; a multiplication and an addition are 2.

    Attributes:
        products: of everything but attention.
        attention: of its two products, at their causal cost where they are causal.
        attention_all_pairs: of the same over all pairs of positions.
    """

    products: int
    attention: int
    attention_all_pairs: int


class LanguageModel(nn.Module, ABC):
    """A decoder-only network: token ids in, whatever the readout makes of the hidden states out."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated layers, in order: the unit of recomputation, compilation and sharding."""

    def tensor_roles(self) -> Mapping[str, str]:
        """What each module with parameters is for, so that tensor parallelism can cut it.

        Returns:
            Path of the module to ``embedding``, ``positions`` (a table read by position), ``norm``
            (over features, position by position), ``head_norm`` (head by head), ``column`` (a
            linear layer whose outputs may be cut), ``row`` (the one after it, whose inputs are cut
            likewise) or ``head``.

        Raises:
            ConfigError: the network does not say.
        """
        raise ConfigError(
            f"trainer.strategy.init_args.tensor: {type(self).__name__} does not say how its "
            "matrices may be cut; write its tensor_roles, or set tensor=1"
        )

    def forward_flops(self, sequence: int) -> ForwardFlops | None:
        """What a sample of ``sequence`` tokens costs; None (the default) lets torch count it.

        For networks that ``flops`` cannot count: with operators that have no formula, or with work
        that depends on values. A network that declares its work is taken at its word.
        """
        return None

    def tensor_limits(self) -> Mapping[str, tuple[int, int]]:
        """What tensor parallelism cuts, by the key that says so: its size, and the least of a part.

        Raises:
            ConfigError: the network does not say how it may be cut.
        """
        roles = self.tensor_roles().items()
        tables = [path for path, role in roles if role in ("embedding", "head")]
        rows = {self.get_parameter(f"{path}.weight").shape[0] for path in tables}
        return {"the rows of the vocabulary (see pad_vocab_to)": (math.gcd(*rows), 1)}

    @abstractmethod
    def initial(self, name: str) -> Initial:
        """The distribution that parameter ``name`` (as in ``named_parameters``) starts from."""

    @abstractmethod
    def forward(self, tokens: Tensor, readout: Readout[R]) -> R:
        """Runs the network and hands its result to ``readout``.

        The readout runs inside the module that owns the output weight. Sharded strategies gather a
        parameter when its module is entered; a loss that touched the weight from outside would see
        a shard.

        Args:
            tokens: (B, T) integer ids.
            readout: called once with the final normalised hidden states (B, T, D) and the
                projection.
        """


class Network(Part, ABC):
    """Configuration of a network. Subclasses are frozen, keyword-only dataclasses."""

    @property
    @abstractmethod
    def token_ids(self) -> int:
        """Number of token ids the network can read and predict (without padding)."""

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """Longest sequence the network accepts."""

    @property
    def document_masks(self) -> Masks:
        """Which ``Confinement`` the forward of its modules takes as ``documents``, if any.

        ``dense`` takes masks of all pairs of positions, ``blocks`` takes FlexAttention's as well.
        """
        return "none"

    def problems(self, context: Context) -> Iterator[str]:
        """A sequence that is too long, and matrices that tensor parallelism cannot cut evenly."""
        if context.batch.sequence > self.max_positions:
            yield (
                f"batch.sequence={context.batch.sequence} exceeds the {self.max_positions} "
                "positions of model.network; shorten it, or raise "
                "model.network.init_args.max_sequence"
            )
        ranks = context.strategy.tensor
        limits = context.network.tensor_limits() if ranks > 1 else {}
        sizes = {"batch.sequence": (context.batch.sequence, 1), **limits}
        for name, (size, least) in sizes.items():
            if size % (ranks * least):
                way_out = f"use a divisor of both, or change {name}"
                if least > 1:
                    way_out = f"each part needs {least}: make it a multiple of {ranks * least}"
                yield f"trainer.strategy: tensor={ranks} does not divide {name}={size}; {way_out}"

    def fused_bytes(self) -> FusedBytes | None:
        """Bytes that element-wise kernels move, compiled; None (the default) lets plan estimate."""
        return None

    @abstractmethod
    def build(self) -> LanguageModel:
        """Constructs the module on torch's current default device, without choosing its weights."""
