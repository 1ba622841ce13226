"""The sizes and choices that make up a Transformer, apart from the modules that follow them.

Every module reads its own from here, so that none needs to know what it is a part of. Annotations
are evaluated in this file alone, since a subclass inherits those of a dataclass as they are, and in
its file a name such as ``Activation`` would mean nothing.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from llm_train.errors import ConfigError, check_at_least, check_choices
from llm_train.model.network.activations import Activation, is_gated
from llm_train.model.network.initial_rules import parse
from llm_train.model.network.rotary_scaling.base import NoScaling, RotaryScaling

_DEFAULT_ROTARY_BASE = 10_000.0
_DEFAULT_NORM_EPS = 1e-5
_SLAB = 64


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What ``Transformer`` documents, checked."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    max_sequence: int
    pad_vocab_to: int = 1
    kv_heads: int = 0
    mlp_width: int = 0
    norm: Literal["layernorm", "rmsnorm", "none"] = "rmsnorm"
    norm_placement: Literal["pre", "post", "deepnorm", "sandwich", "peri"] = "pre"
    activation: Activation = "swiglu"
    positions: Literal["none", "sinusoidal", "learned", "rotary", "alibi"] = "rotary"
    rotary_base: float = _DEFAULT_ROTARY_BASE
    rotary_scaling: RotaryScaling = NoScaling()  # noqa: RUF009 - frozen
    qk_norm: bool = False
    soft_cap: float = 0.0
    tied: bool = False
    bias: bool = False
    dropout: float = 0.0
    embedding_scale: float = 1.0
    residual_init: Literal["depth", "zero"] = "depth"
    init_std: float = 0.02
    init: dict[str, str] = field(default_factory=dict)
    norm_eps: float = _DEFAULT_NORM_EPS

    def __post_init__(self) -> None:
        check_choices(self)
        self._check_ranges()
        if self.width % self.heads:
            even = 2 if self.positions == "rotary" else 1  # which turns pairs of features
            raise ConfigError(
                f"width={self.width} is not a multiple of heads={self.heads}; "
                f"nearest: {_nearest_multiples(self.width, even * self.heads)}"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise ConfigError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}; "
                f"use one of {', '.join(map(str, divisors))}, or 0 for as many as heads"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(
                f"width={self.width} / heads={self.heads} gives {self.head_dim} features a head, "
                "but positions=rotary turns pairs; make it even or use positions=learned"
            )
        for pattern, text in self.init.items():
            parse(pattern, text)
        self._check_effects()

    def _check_effects(self) -> None:
        """Settings that another one makes useless."""
        scaled = self.rotary_scaling != NoScaling()
        rotary = {
            f"rotary_base={self.rotary_base:g}": self.rotary_base != _DEFAULT_ROTARY_BASE,
            f"rotary_scaling={type(self.rotary_scaling).__name__}": scaled,
        }
        for setting, given in rotary.items():
            if given and self.positions != "rotary":
                raise ConfigError(
                    f"{setting} has no effect with positions={self.positions}; "
                    "remove it or use positions=rotary"
                )
        if vars(self.rotary_scaling).get("factor") == 1:
            raise ConfigError(
                f"rotary_scaling={type(self.rotary_scaling).__name__} has no effect with factor=1; "
                "remove it or raise its factor"
            )
        norms = {
            f"norm_placement={self.norm_placement}": self.norm_placement != "pre",
            f"norm_eps={self.norm_eps:g}": self.norm_eps != _DEFAULT_NORM_EPS and not self.qk_norm,
        }
        for setting, given in norms.items():
            if given and self.norm == "none":
                raise ConfigError(
                    f"{setting} has no effect with norm=none; remove it or choose a norm"
                )
        if self.norm_placement == "deepnorm" and self.residual_init == "zero":
            raise ConfigError(
                "residual_init=zero has no effect with norm_placement=deepnorm, which has its own "
                "initial weights; remove it, or write init: {'*.down.weight': zero}"
            )

    def _check_ranges(self) -> None:
        check_at_least(self, 1, "vocab_size", "layers", "width", "heads", "max_sequence")
        check_at_least(self, 1, "pad_vocab_to")
        check_at_least(self, 0, "kv_heads", "mlp_width", hint=" (0 derives it)")
        check_at_least(self, 0, "soft_cap", "init_std")
        check_at_least(self, 0, "dropout", below=1)
        for key in ("rotary_base", "norm_eps", "embedding_scale"):
            value = getattr(self, key)
            if not 0.0 < value < math.inf:
                raise ConfigError(f"{key}={value:g} must be a finite number above 0")
        if self.rotary_base <= 1.0:
            raise ConfigError(
                f"rotary_base={self.rotary_base:g} must be above 1, or all pairs of features turn "
                "alike; remove it for the usual one"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head."""
        return self.pad_vocab_to * math.ceil(self.vocab_size / self.pad_vocab_to)

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has two projections to its hidden features."""
        return is_gated(self.activation)

    @property
    def hidden(self) -> int:
        """Hidden features of the feed-forward part.

        By default 4 D; where it is gated 8/3 D rounded up to a multiple of 64, as many parameters.

        >>> sizes = {"vocab_size": 8, "layers": 1, "heads": 8, "max_sequence": 8}
        >>> [Architecture(width=width, **sizes).hidden for width in (768, 1024)]
        [2048, 2752]
        """
        gated = _SLAB * math.ceil(8 * self.width / (3 * _SLAB))
        return self.mlp_width or (gated if self.gated else 4 * self.width)

    @property
    def slab(self) -> int:
        """Consecutive rows of one kind in a gated unit's fused weight."""
        return math.gcd(self.hidden, _SLAB)

    @property
    def norms_stream(self) -> bool:
        """Whether norms stand on the residual stream, so that it ends with one of a block's."""
        return self.norm_placement in ("post", "deepnorm")

    @property
    def deepnorm_alpha(self) -> float:
        """What DeepNorm multiplies the stream by before it adds a branch: (2 L) ** (1/4)."""
        return math.pow(2 * self.layers, 0.25)


def _nearest_multiples(value: int, factor: int) -> str:
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else f"{factor}"
