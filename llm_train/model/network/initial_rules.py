"""Rules for initial matrices: which pattern of names has which, and its standard deviation.

For a matrix with n inputs and m outputs, the standard deviation of an element is

    normal             init_std                         (GPT-2)
    truncated_normal   init_std, within 2.27 of them    (BERT; see ``truncate``)
    lecun              sqrt(1 / n)                      (LeCun et al. 1998)
    xavier             sqrt(2 / (n + m))                (Glorot and Bengio 2010)
    he                 sqrt(2 / n)                      (arXiv:1502.01852; the *variance* is 2 / n)
    scaled_residual    init_std / sqrt(2 layers)        (GPT-2)
    zero               0                                (arXiv:1901.09321)
    deepnorm           xavier's, times (8 layers) ** -0.25 but for queries and keys
                                                        (arXiv:2203.00555)

and ``orthogonal`` has orthonormal rows, or columns if there are more rows (arXiv:1312.6120).
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from llm_train.errors import ConfigError
from llm_train.runtime.patterns import holding, useless

RULES = (
    *("normal", "truncated_normal", "lecun", "xavier", "he"),
    *("orthogonal", "scaled_residual", "zero", "deepnorm"),
)
_BOUND = 2.0
_TRUNCATED_STD = 0.87962566103423978  # of a standard normal variable between -2 and 2


class InitialRule(NamedTuple):
    """How a matrix starts.

    Attributes:
        name: one of ``RULES``.
        gain: multiplies the standard deviation.
    """

    name: str
    gain: float = 1.0


class Fans(NamedTuple):
    """What the variance of a product depends on.

    Attributes:
        inputs: terms in the sum of one output; 1 for a table from which a row is looked up.
        outputs: features that come out.
        on_values: whether it carries values along the residual stream, as all but queries and keys.
    """

    inputs: int
    outputs: int
    on_values: bool


def parse(pattern: str, text: str) -> InitialRule:
    """A rule, and the number after it.

    >>> parse("*.up.weight", "he 0.5")
    InitialRule(name='he', gain=0.5)

    Raises:
        ConfigError: it is none.
    """
    name, _, gain = text.partition(" ")
    try:
        rule = InitialRule(name, float(gain or 1.0))
    except ValueError:
        rule = InitialRule("")
    if rule.name not in RULES or not 0.0 < rule.gain < math.inf:
        raise ConfigError(
            f"init['{pattern}']={text!r} is not one of {', '.join(RULES)}, with or without a "
            "number above 0 after it, as in 'he 0.5'"
        )
    return rule


def check_patterns(rules: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuses a pattern that holds for none of the matrices ``names``."""
    names = list(names)
    for pattern, fits in useless(rules, names):
        if fits:
            fault = (
                "has no effect, since later ones fit all that it fits; remove it, or move it down"
            )
        else:
            fault = f"fits no matrix; write a pattern of names such as {', '.join(names[:4])}"
        raise ConfigError(f"model.network.init_args.init['{pattern}'] {fault}")


def chosen(rules: Mapping[str, str], name: str, default: InitialRule) -> InitialRule:
    """The last rule whose pattern fits a parameter's name."""
    pattern = holding(rules, name)
    return parse(pattern, rules[pattern]) if pattern else default


def std(rule: InitialRule, fans: Fans, *, init_std: float, layers: int) -> float:
    """Standard deviation of a matrix's elements, or length of its vectors for ``orthogonal``."""
    plain = {
        "normal": init_std,
        "truncated_normal": init_std,
        "lecun": math.sqrt(1 / fans.inputs),
        "xavier": math.sqrt(2 / (fans.inputs + fans.outputs)),
        "he": math.sqrt(2 / fans.inputs),
        "scaled_residual": init_std / math.sqrt(2 * layers),
        "zero": 0.0,
        "orthogonal": 1.0,
        "deepnorm": math.sqrt(2 / (fans.inputs + fans.outputs)),
    }[rule.name]
    beta = (8.0 * layers) ** -0.25 if rule.name == "deepnorm" and fans.on_values else 1.0
    return rule.gain * plain * beta


def fill(matrix: Tensor, rule: InitialRule, scale: float) -> None:
    """Turns standard normal values (..., inputs) into those of ``rule``, in place."""
    if rule.name == "orthogonal":
        matrix.copy_(orthogonal(matrix.flatten(0, -2)).view(matrix.shape))
    if rule.name == "truncated_normal":
        truncate(matrix)
    matrix.mul_(scale)


def truncate(normal: Tensor) -> None:
    """Maps standard normal values to within two standard deviations, in place, and rescales them.

    Cutting the tails off leaves a standard deviation of 0.88. ``torch.nn.init.trunc_normal_`` keeps
    that; here it is 1, as in JAX, so that the variance is the one that was asked for.
    """
    edge = torch.special.ndtr(torch.tensor(-_BOUND)).item()
    inside = edge + (1.0 - 2.0 * edge) * torch.special.ndtr(normal)
    normal.copy_(torch.special.ndtri(inside) / _TRUNCATED_STD)


def orthogonal(normal: Tensor) -> Tensor:
    """(m, n) standard normal values to orthonormal rows, or columns if there are more rows.

    Signs make the result uniformly distributed (Mezzadri, arXiv:math-ph/0609050). Another LAPACK
    may round it differently.
    """
    wide = normal.shape[0] < normal.shape[1]
    q, r = torch.linalg.qr(normal.T if wide else normal)
    columns: Tensor = q * r.diagonal().sign()
    return columns.T if wide else columns
