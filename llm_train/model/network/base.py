"""What a network must offer so that losses, recomputation and sharding can treat it as a black box.

Two classes, because two things differ: ``Network`` is the configuration (a frozen dataclass that
YAML fills in) and ``LanguageModel`` is the torch module it builds.

A network that can continue a text keeps keys and values of the positions already seen, so that the
next token costs one position of work. The memory is taken once, at full capacity, when the first
keys arrive: only then are their dtype (which autocast may have changed), device and local number of
heads known. Nothing grows afterwards.

Shapes: B batch, T positions, S positions stored, D width, V vocabulary (padded), K key/value heads,
hd head_dim.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
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


class LayerCache:
    """Keys and values of one block.

    Attributes:
        capacity: positions it can hold.
        length: positions it holds; the position of the next token.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._stored: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, K, T, hd) twice and returns everything so far, (B, K, S, hd) twice."""
        batch, heads, new, head_dim = keys.shape
        end = self.length + new
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        if self._stored is None:
            self._stored = keys.new_empty(2, batch, heads, self.capacity, head_dim)
        self._stored[0, :, :, self.length : end] = keys
        self._stored[1, :, :, self.length : end] = values
        self.length = end
        return self._stored[0, :, :, :end], self._stored[1, :, :, :end]


Cache = list[LayerCache]
"""One for each block of a network; between two forwards all of them have one length."""


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """(new, total), true where the i-th of the last ``new`` positions may look.

    >>> causal_mask(2, 4, torch.device("cpu")).int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 1]]
    """
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)


class CachedLanguageModel(LanguageModel):
    """A language model that can continue from a cache.

    Attributes:
        max_positions: positions that the cache and the new tokens may take together.
    """

    max_positions: int

    @abstractmethod
    def new_cache(self) -> Cache:
        """An empty cache of ``max_positions`` positions; one cache serves one sequence batch."""

    @abstractmethod
    def forward(self, tokens: Tensor, readout: Readout[R], cache: Cache | None = None) -> R:
        """As ``LanguageModel.forward``; ``tokens`` follow those in ``cache`` and join them."""
