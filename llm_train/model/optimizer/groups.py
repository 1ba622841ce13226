"""Which parameters decay: matrices and embeddings do, norms and biases do not.

What is unusual: the split is made by the number of dimensions and by nothing else, so no list of
names can go stale, and that every trainable parameter is in exactly one group is asserted, not
hoped.

Parameters go into a group as ``(name, parameter)`` pairs. torch stores the names under
``param_names`` alongside the parameters and in the state dict (since torch 2.6), which makes a
checkpoint readable by itself; torch's distributed checkpointing carries the key along. No key of
our own is needed.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, get_type_hints

from torch import Tensor, nn

from llm_train.errors import ConfigError, check_choices

Named = tuple[str, nn.Parameter]
Group = dict[str, Any]  # torch's own type of a group


def trainable(named_parameters: Iterable[Named]) -> list[Named]:
    """Each parameter that requires a gradient, once, under its first name.

    Raises:
        ConfigError: there is none.
    """
    first: dict[int, Named] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            first.setdefault(id(parameter), (name, parameter))  # tied ones come again
    if not first:
        raise ConfigError("optimizer: no parameter requires a gradient; unfreeze at least one")
    return list(first.values())


def full_shape(parameter: Tensor) -> Sequence[int]:
    """The shape of the whole parameter, sharded or not.

    A DTensor answers for the whole. DeepSpeed's ZeRO-3 leaves an empty vector in place of a
    parameter that it partitioned at construction, and the true shape alongside it in ``ds_shape``.
    """
    shape: Sequence[int] = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def dimensions(parameter: Tensor) -> int:
    """Number of dimensions of the whole parameter, sharded or not."""
    return len(full_shape(parameter))


def decay_groups(named_parameters: Iterable[Named], weight_decay: float) -> list[Group]:
    """Two groups for a torch optimizer: with two or more dimensions decay, the others do not.

    Args:
        named_parameters: tied parameters may come more than once, frozen ones are left out; plain
            parameters, DTensors, or ZeRO-3's; may be a generator.
        weight_decay: of the first group.

    Returns:
        Dictionaries with ``params`` (pairs of name and parameter) and ``weight_decay``. A group
        that would be empty is left out.
    """
    named = trainable(named_parameters)
    matrices = [pair for pair in named if dimensions(pair[1]) >= 2]
    others = [pair for pair in named if dimensions(pair[1]) < 2]
    split = ((matrices, weight_decay), (others, 0.0))
    groups = [Group(params=params, weight_decay=decay) for params, decay in split if params]
    assert_covered(groups, named)
    return groups


def assert_covered(groups: Sequence[Group], named: Sequence[Named]) -> None:
    """Every parameter is in exactly one group, and nothing else is."""
    placed = sorted(id(parameter) for group in groups for _, parameter in group["params"])
    assert placed == sorted(id(parameter) for _, parameter in named), "groups do not add up"


def set_learning_rates(groups: Sequence[Group], peaks: Sequence[float], factor: float) -> None:
    """Gives each group of a torch optimizer ``factor`` times its peak for the next update."""
    for group, peak in zip(groups, peaks, strict=True):
        if isinstance(group["lr"], Tensor):  # torchao's compiled updates take it as an input
            group["lr"].fill_(peak * factor)
        else:
            group["lr"] = peak * factor


def check_fields(config: object) -> None:
    """Refuses values that no optimizer takes.

    Args:
        config: a dataclass. A number whose name ends in ``learning_rate``, ``eps``, ``trust`` or
            ``growth`` must be positive, one ending in ``weight_decay`` not negative, and any other
            (momenta) in [0, 1).

    Raises:
        ConfigError: if a value breaks its rule.
    """
    check_choices(config, "optimizer.")
    hints = get_type_hints(type(config))
    values = {name: getattr(config, name) for name, hint in hints.items() if hint is float}
    values |= {f"betas[{index}]": beta for index, beta in enumerate(getattr(config, "betas", ()))}
    for name, value in values.items():
        if name.endswith(("learning_rate", "eps", "trust", "growth")):
            good, rule = value > 0.0, "a finite number > 0"
        elif name.endswith("weight_decay"):
            good, rule = value >= 0.0, "a finite number >= 0"
        else:
            good, rule = 0.0 <= value < 1.0, "in [0, 1)"
        if not (good and math.isfinite(value)):
            usual = getattr(type(config), name, _USUAL.get(name, 0.95))
            raise ConfigError(f"optimizer.{name}={value} is not {rule}; a usual value is {usual}")


_USUAL = {"learning_rate": "3e-4", "betas[0]": 0.9, "temperature": "1e-9"}  # without a default
