"""What an optimizer keeps in its parameter groups: a count of steps, moving betas, Prodigy's ``d``.

torch has groups for settings, and many optimizers keep state there as well, under names that only
they know. So what has changed since the optimizer was built is its state. The value it was built
with is saved with it: where the configuration gives another one by then, that one applies.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from llm_train.errors import CheckpointError
from llm_train.model.optimizer.groups import Group
from llm_train.runtime.sharded import whole

_NOT_STATE = ("params", "param_names", "lr", "initial_lr")  # the task sets the learning rate
_PLAIN = (bool, int, float, complex, str, type(None))


def values(groups: Sequence[Group]) -> list[Group]:
    """A copy of all that groups hold and a file can hold, besides parameters and learning rates."""
    return [
        {
            key: tree_map(_copied, value)
            for key, value in group.items()
            if key not in _NOT_STATE and all(map(_can_be_saved, tree_leaves(value)))
        }
        for group in groups
    ]


def changes(groups: Sequence[Group], built: Sequence[Group]) -> list[dict[str, Group]]:
    """What the optimizer has changed in each group, before and now.

    Args:
        groups: of the optimizer.
        built: ``values`` of its groups when it was built.
    """
    return [
        {
            "now": {key: value for key, value in now.items() if not _same(value, before.get(key))},
            "built": before,
        }
        for now, before in zip(values(groups), built, strict=True)
    ]


def restore(
    groups: Sequence[Group], built: Sequence[Group], saved: Sequence[dict[str, Group]]
) -> None:
    """Puts what ``changes`` found back into the groups, where the settings are what they were.

    Raises:
        CheckpointError: there are as many groups no longer.
    """
    if len(saved) != len(groups):
        raise CheckpointError(
            f"model.optimizer has {len(groups)} parameter groups, and the checkpoint state of "
            f"{len(saved)}; use the configuration saved alongside the checkpoint"
        )
    for group, settings, kept in zip(groups, built, saved, strict=True):
        for key, value in kept["now"].items():
            if _same(settings.get(key), kept["built"].get(key)):
                group[key] = value


def _can_be_saved(leaf: object) -> bool:
    return isinstance(leaf, (Tensor, np.generic)) or type(leaf) in _PLAIN


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, np.generic):
        return leaf.item()
    return whole(leaf.detach()).clone() if isinstance(leaf, Tensor) else leaf


def _same(one: object, other: object) -> bool:
    (leaves, structure), (others, its) = tree_flatten(one), tree_flatten(other)
    return structure == its and all(map(_equal, leaves, others))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.device == other.device and torch.equal(one, other)
    return type(one) is type(other) and one == other
