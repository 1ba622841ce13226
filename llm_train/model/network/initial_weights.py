"""How each matrix of a Transformer starts: by default as GPT-2's, else by the rules of ``init``.

What is unusual: a parameter may hold several matrices. Rules that look at the number of outputs,
or at what a matrix is for, see queries, keys and values one by one, and gate and up projection.
(``torch.nn.MultiheadAttention`` takes its fused projection for one matrix of 3 D outputs, and so
makes it smaller than Xavier's rule has it.)
"""

from collections.abc import Iterator, Set
from functools import partial

from torch import Tensor

from llm_train.model.network.architecture import Architecture
from llm_train.model.network.base import Initial
from llm_train.model.network.initial_rules import Fans, InitialRule, chosen, fill, std


def initial_matrix(config: Architecture, name: str, role: str) -> Initial:
    """The distribution of a matrix.

    Args:
        config: of the network.
        name: of the parameter.
        role: of its module, as in ``LanguageModel.tensor_roles``.
    """
    rows = config.vocab_size if role in ("embedding", "head") else 0
    rule = chosen(config.init, name, _default(config, role))
    if rule.name in ("normal", "scaled_residual", "zero"):  # the same for all elements
        scale = std(rule, Fans(1, 1, True), init_std=config.init_std, layers=config.layers)
        return Initial(0.0, scale, rows)
    module = name.split(".")[-2]
    return Initial(0.0, 1.0, rows, partial(_fill, config=config, module=module, rule=rule))


def stuck(config: Architecture, zero: Set[str]) -> Iterator[tuple[str, str]]:
    """Pairs of weights that start at zero and are factors of one product: neither gets a gradient.

    Args:
        config: of the network.
        zero: names of the parameters that start at zero.
    """
    pairs = []
    if config.positions not in ("sinusoidal", "learned") or "positions.weight" in zero:
        pairs.append(("embedding.weight", "embedding.weight" if config.tied else "head.weight"))
    for layer in (f"layers.{number}" for number in range(config.layers)):
        pairs.append((f"{layer}.attention.qkv.weight", f"{layer}.attention.out.weight"))
        if config.activation != "sigmoid":  # all others are 0 at 0
            up = "gate_up" if config.gated else "up"
            pairs.append((f"{layer}.mlp.{up}.weight", f"{layer}.mlp.down.weight"))
    yield from (pair for pair in pairs if set(pair) <= zero)


def _default(config: Architecture, role: str) -> InitialRule:
    if role in ("column", "row") and config.norm_placement == "deepnorm":
        return InitialRule("deepnorm")
    if role == "row":  # the last weight of a residual branch
        return InitialRule("scaled_residual" if config.residual_init == "depth" else "zero")
    return InitialRule("normal")


def _fill(full: Tensor, *, config: Architecture, module: str, rule: InitialRule) -> None:
    for matrix, fans in _matrices(full, config, module):
        fill(matrix, rule, std(rule, fans, init_std=config.init_std, layers=config.layers))


def _matrices(full: Tensor, config: Architecture, module: str) -> Iterator[tuple[Tensor, Fans]]:
    """Views (..., inputs) of the matrices in a parameter."""
    inputs = full.shape[-1]
    if module in ("embedding", "positions"):  # a row is looked up, and nothing summed
        yield full, Fans(1, inputs, True)
    elif module == "qkv":
        heads = full.view(config.key_value_heads, -1, config.head_dim, inputs)
        yield heads[:, :-2], Fans(inputs, config.width, False)
        kv_width = config.key_value_heads * config.head_dim
        yield heads[:, -2], Fans(inputs, kv_width, False)
        yield heads[:, -1], Fans(inputs, kv_width, True)
    elif module == "gate_up":
        for half in full.view(-1, 2, config.slab, inputs).unbind(1):
            yield half, Fans(inputs, config.hidden, True)
    else:
        yield full, Fans(inputs, full.shape[0], True)
