"""Parameters and floating point operations of any network, by the formulas of torch's counter.

What is unusual: no list of module types. One sample goes through the network on the meta device,
where tensors have shapes and no values, and torch's formulas are applied to the operators that
arrive. An operator that does matrix work and has no formula is refused by name, and so is a
parameter that the forward never reads: a zero would be silent.

The count is of useful work: 3 times the forward (each product has two in backward), attention at
its causal cost, no recomputation, whatever the loss does. Norms, activations and other element-wise
work are not counted, as is usual.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from llm_train.errors import ConfigError
from llm_train.model.network.base import ForwardFlops, LanguageModel

_ATEN = torch.ops.aten
_ATTENTION = _ATEN.scaled_dot_product_attention
_DECLARE = "or say what it costs in the network's forward_flops"
# Namespaces whose operators are torch's own: what has no formula there does no matrix work, unless
# its name says so (addmv, _fft_r2c, _thnn_fused_lstm_cell, linalg_qr ...).
_TORCH = ("aten", "prims", "prim", "profiler")
_MATRIX_WORK = re.compile(
    r"(^|_)(\w*m[mv]|v?dot|conv(?!ert)\w*|attention|fft|rnn|lstm|gru|linear|[cp]dist|addr"
    r"|trilinear|encoder|linalg(?!_(vector_norm|cross)))(_|$)"
)


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Of scores and weighted sum in forward, over all pairs; causal attention has to do half.

    Args:
        query: its shape (..., T, hd), all heads; grouped keys and values cost no less.
        key: (..., S, hd).
        value: (..., S, hd).
    """
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


class Counts:
    """What a network costs. Make it before sharding: ZeRO 3 empties the parameters.

    Args:
        network: on the meta device, where counting takes no memory; on another one it computes.

    Attributes:
        parameters: distinct parameters; a tied weight counts once, vocabulary padding counts.
    """

    def __init__(self, network: LanguageModel) -> None:
        self.parameters = sum(p.numel() for p in network.parameters())
        self._forward = functools.cache(
            lambda sequence: network.forward_flops(sequence) or count_forward(network, sequence)
        )

    def matmul_parameters(self, sequence: int) -> int:
        """Weights that multiply a token: linear layers and the head, also where it is tied.

        Half the operations of a token's products outside attention, so that of experts those count
        that are computed.
        """
        return self._forward(sequence).products // (2 * sequence)

    def flops_per_token(self, sequence: int, *, causal: bool = True) -> int:
        """Model FLOPs for one token, forward and backward.

        ``6 * matmul_parameters + 6 * layers * d_model * sequence`` for a Transformer. Each of the
        two attention products costs 2 * d_model * sequence forward and twice that backward, 12 in
        all; a causal kernel has to do half of it. nanoGPT and PaLM (arXiv:2204.02311, appendix B)
        count all 12.

        Args:
            sequence: tokens in a training sequence.
            causal: count half of the attention matrix (the default), or all of it.

        Raises:
            ConfigError: something in the network cannot be counted.
        """
        found = self._forward(sequence)
        attention = found.attention if causal else found.attention_all_pairs
        return 3 * (found.products + attention) // sequence


def count_forward(network: LanguageModel, sequence: int) -> ForwardFlops:
    """What torch's formulas find in the forward of one sample.

    Raises:
        ConfigError: an operator without a formula, an unused parameter, or work that depends on
            values.
    """
    parameters = dict(network.named_parameters())
    device = next(iter(parameters.values())).device
    name = f"model.network: {type(network).__name__}"
    counter = _Counter(name)
    try:
        # In inference mode attention arrives as the one operator it is, whatever kernel would run.
        with torch.device(device), torch.inference_mode(), counter:
            # Logits, not the loss, whose own way to compute them must not change the count.
            tokens = torch.zeros(1, sequence, dtype=torch.long)
            network(tokens, lambda hidden, projection: projection.logits(hidden))
    except ConfigError:
        raise
    except Exception as error:  # any that a forward without values can raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} does not run on the meta device, where FLOPs are counted ({reason}); compute "
            f"shapes without values, {_DECLARE}"
        ) from error
    for path, parameter in parameters.items():
        if parameter.untyped_storage()._cdata not in counter.read:
            raise ConfigError(f"{name} never uses {path}; remove it, {_DECLARE}")
    return ForwardFlops(counter.products, counter.attention, counter.attention_all_pairs)


class _Counter(TorchDispatchMode):
    """torch's ``FlopCounterMode``, with causal attention, and without zeros for the unknown.

    Attributes:
        products: operations of everything but attention.
        attention: of attention, at its causal cost.
        attention_all_pairs: of attention.
        read: the storages that were arguments.
    """

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products = self.attention = self.attention_all_pairs = 0
        self.read: set[int] = set()
        self._name = name

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: Sequence[Any] = (),  # whatever the operator takes
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs, operator = kwargs or {}, func.overloadpacket
        if operator is not _ATTENTION:  # taken apart, it would not say that it is causal
            with self:  # which a mode has left while it handles an operator: count the parts too
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.read.add(leaf.untyped_storage()._cdata)
        formula = _FORMULAS.get(operator) or flop_registry.get(operator)
        foreign = func.namespace not in _TORCH or _MATRIX_WORK.search(operator.__name__)
        if foreign and formula is None and operator is not _ATTENTION:
            raise ConfigError(
                f"{self._name} calls {operator}, whose FLOPs are unknown; give a formula to "
                f"torch.utils.flop_counter.register_flop_formula, {_DECLARE}"
            )
        out = func(*args, **kwargs)
        if operator is _ATTENTION:
            all_pairs, causal = _attend(*args, **kwargs)
            self.attention += all_pairs // 2 if causal else all_pairs
            self.attention_all_pairs += all_pairs
        elif formula is not None:
            self.products += formula(*args, **kwargs, out_val=out)
        return out


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: object,
) -> tuple[int, bool]:
    """Operations over all pairs, and whether half of them would do."""
    # Any mask is at least causal: a language model may not look ahead.
    causal = is_causal or attn_mask is not None
    return attention_flops(query.shape, key.shape, value.shape), causal


def _matrix(matrix: Tensor, *_: object, **__: object) -> int:
    return 2 * matrix.numel()


def _grouped(rows: Tensor, weights: Tensor, *_: object, **__: object) -> int:
    return 2 * rows.numel() * weights.shape[-1]  # each row meets the matrix of one expert


# For operators that torch's registry leaves out.
_FORMULAS: dict[object, Callable[..., int]] = {
    _ATEN.mv: _matrix,
    _ATEN.dot: _matrix,
    _ATEN._grouped_mm: _grouped,
}
