"""A network that begins as several copies of a narrower one side by side, and computes the same.

Its stream is the narrower one's, several times, so norms find the same statistics, and the sum over
the inputs of a matrix is divided by the number of copies (HyperCloning; Samragh et al. 2024,
https://arxiv.org/abs/2409.12903). Copies that are equal would have equal gradients and never part;
what the new matrix was drawn as parts them, without its mean over the copies: it multiplies equal
inputs by numbers whose sum is 0. Heads are copied whole, since positions turn features by their
place in a head.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm_train.exchange.families.base import parts_of, whole_of
from llm_train.model.network.base import Network
from llm_train.model.network.transformer import Transformer

_SIZES = {"width": "width", "heads": "heads", "kv_heads": "key_value_heads", "mlp_width": "hidden"}


def obstacles(network: Network, factor: int, there: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a network from computing what a narrower one computes; none: nothing does.

    Args:
        network: the wider one.
        factor: number of copies.
        there: arguments of the narrower one.
    """
    if not isinstance(network, Transformer):
        yield f"{type(network).__name__}, only Transformer"
        return
    if network.positions in ("sinusoidal", "alibi"):
        yield f"positions={network.positions}, which depend on its width"
    if network.tied and (network.norm == "none" or network.norms_stream):
        yield "tied=True and no norm after the last block, which alone could divide the logits"
    known = {**there, "kv_heads": there.get("kv_heads") or there.get("heads")}
    if not known.get("mlp_width") and {"width", "heads"} <= known.keys():  # derived there
        sizes = {"width": known["width"], "heads": known["heads"]}
        known["mlp_width"] = replace(network, **sizes, kv_heads=0, mlp_width=0).hidden
    for name, ours in _SIZES.items():
        value = getattr(network, ours)
        if value != factor * (known.get(name) or value // factor):
            yield f"{name}={value}, not {factor} times that of init_from.path"


def narrower(network: Network, factor: int) -> Transformer:
    """The network of which ``network`` begins as copies."""
    assert isinstance(network, Transformer), "obstacles were asked"
    sizes = {name: getattr(network, ours) // factor for name, ours in _SIZES.items()}
    return replace(network, **sizes)


def widened(network: Network, factor: int, name: str, given: Tensor, drawn: Tensor) -> Tensor:
    """A parameter of ``network`` that begins with a narrower one's.

    Args:
        network: the wider one.
        factor: number of copies.
        name: of the parameter.
        given: what the narrower network has.
        drawn: what the wider one would begin with.
    """
    assert isinstance(network, Transformer), "obstacles were asked"
    module = name.split(".")[-2]
    if module in ("q_norm", "k_norm"):  # within a head
        return given
    copies = given.float()
    if module not in ("embedding", "positions", "head"):
        parts = parts_of(narrower(network, factor), module, copies)
        copies = whole_of(network, module, [torch.cat([part] * factor) for part in parts])
    if given.dim() == 1:
        # A head that is the embedding has columns that are not divided.
        return copies / factor if name.startswith("norm.") and network.tied else copies
    if module in ("embedding", "positions"):
        return copies.repeat(1, factor)
    apart = drawn[: len(copies)].reshape(len(copies), factor, -1)
    return ((copies / factor)[:, None] + apart - apart.mean(1, keepdim=True)).flatten(1)
