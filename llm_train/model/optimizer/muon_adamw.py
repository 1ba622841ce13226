"""Muon for the matrices of the blocks, AdamW for everything else.

What is unusual: the split is by name and shape. Muon's are the two-dimensional parameters of
repeated layers, which a number in the path gives away (``layers.<i>....``): orthogonal
updates suit matrices between hidden states, not embedding and head, whose rows are tokens. A fused
matrix (query, key and value in one, gate and up in one) is orthogonalized as the one matrix it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn, optim

from llm_train.context import OptimizerTraits
from llm_train.errors import ConfigError, check_at_least
from llm_train.model.optimizer.adamw import AdamSettings, can_fuse
from llm_train.model.optimizer.base import STEP_BYTES
from llm_train.model.optimizer.groups import (
    Group,
    assert_covered,
    decay_groups,
    dimensions,
    trainable,
)
from llm_train.model.optimizer.muon import MUON_SETTINGS, MuonWithAdamW
from llm_train.runtime.sharded import tensor_bytes


@dataclass(frozen=True, kw_only=True)
class MuonAdamW(AdamSettings):
    """Muon (Jordan et al. 2024; scaling of arXiv:2502.16982) and AdamW as one optimizer.

    Needs whole matrices: runs under DDP and FSDP, not under DeepSpeed's ZeRO, which flattens them.

    Attributes:
        learning_rate: peak of the AdamW part (embeddings, head, norms, biases).
        muon_learning_rate: peak of the Muon part, times the scale that ``learning_rate_scaling``
            names. About 0.02 with ``original``; with ``match_rms`` what AdamW would use.
        learning_rate_scaling: ``original`` sqrt(max(1, rows / columns)), or ``match_rms``
            0.2 sqrt(max(rows, columns)), which makes updates as large as AdamW's.
        momentum: of Muon (Nesterov).
        muon_weight_decay: decoupled decay of Muon's matrices.
        newton_schulz_steps: iterations of the orthogonalization.
        newton_schulz_dtype: of its products; ``auto`` is float32 on a CPU and bfloat16 elsewhere.
        betas: decay rates of AdamW's moments.
        eps: of AdamW.
        weight_decay: of AdamW's parameters with two or more dimensions.
        fused: AdamW's part in one kernel: ``auto`` where torch can, ``off`` never.
    """

    muon_learning_rate: float = 0.02
    learning_rate_scaling: Literal["original", "match_rms"] = "original"
    momentum: float = 0.95
    muon_weight_decay: float = 0.0
    newton_schulz_steps: int = 5
    newton_schulz_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    fused: Literal["auto", "off"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        hint = "; a usual value is 5"
        check_at_least(self, 1, "newton_schulz_steps", below=21, prefix="optimizer.", hint=hint)

    @property
    def traits(self) -> OptimizerTraits:
        """Orthogonalizes whole matrices, those of one shape together."""
        return OptimizerTraits(
            name=type(self).__name__,
            flat_fragments=False,
            one_by_one=False,
            update_size="layer",
        )

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer: Muon's group first, then AdamW's decaying and its others.

        Raises:
            ConfigError: no parameter is Muon's.
        """
        named = trainable(named_parameters)
        hidden = [pair for pair in named if is_muons(*pair)]
        if not hidden:
            raise ConfigError(
                "model.optimizer: MuonAdamW found no matrix in a numbered layer (layers.<i>.*); "
                "keep the network's layers in a ModuleList, or use AdamW"
            )
        muon = {key: getattr(self, key) for key in MUON_SETTINGS}
        muon |= {"lr": self.muon_learning_rate, "weight_decay": self.muon_weight_decay}
        groups = [Group(params=hidden, algorithm="muon", **muon)]
        rest = [pair for pair in named if not is_muons(*pair)]
        fusable = self.fused == "auto" and can_fuse(parameter for _, parameter in rest)
        fused = True if fusable else None  # False would switch off multi-tensor kernels as well
        for group in decay_groups(rest, self.weight_decay) if rest else []:
            groups.append(group | {"algorithm": "adamw", "fused": fused} | self.adam_group)
        assert_covered(groups, named)
        return MuonWithAdamW(groups)

    def state_bytes(self, name: str, parameter: Tensor) -> int:
        """One momentum for Muon's matrices; two moments and a step counter for the others."""
        moment = tensor_bytes(parameter)
        return moment if is_muons(name, parameter) else 2 * moment + STEP_BYTES


def is_muons(name: str, parameter: Tensor) -> bool:
    """Whether Muon updates this parameter: a matrix inside a repeated layer.

    >>> is_muons("layers.0.mlp.up.weight", nn.Parameter(nn.Linear(2, 3).weight))
    True
    >>> is_muons("head.weight", nn.Parameter(nn.Linear(2, 3).weight))
    False
    """
    return any(part.isdigit() for part in name.split(".")) and dimensions(parameter) == 2
