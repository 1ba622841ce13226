"""AdamW (Loshchilov & Hutter, arXiv:1711.05101) with decay groups, fused where torch can."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn, optim

from llm_train.context import OptimizerTraits
from llm_train.errors import ConfigError
from llm_train.model.optimizer.base import STEP_BYTES, Optimizer
from llm_train.model.optimizer.groups import Group, check_fields, decay_groups
from llm_train.runtime.sharded import tensor_bytes


def can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch's fused kernels take all of them: floating point, on a CPU or a CUDA device."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


@dataclass(frozen=True, kw_only=True)
class AdamSettings(Optimizer):
    """Base of the optimizers that update some parameters by AdamW.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        betas: decay rates of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: fraction taken off per step, times the learning rate, of parameters with two
            or more dimensions.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def adam_group(self) -> Group:
        """What torch calls these settings, apart from the decay."""
        return {"lr": self.learning_rate, "betas": self.betas, "eps": self.eps}


@dataclass(frozen=True, kw_only=True)
class AdamW(AdamSettings):
    """torch's AdamW; weight decay on matrices and embeddings only.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        betas: decay rates of the first and the second moment. 0.95, not torch's 0.999, for the
            second: usual in language models since GPT-3 (arXiv:2005.14165, appendix B).
        eps: added to the root of the second moment.
        weight_decay: fraction taken off per step, times the learning rate, of parameters with two
            or more dimensions.
        fused: one kernel for all parameters. ``auto`` where torch can, ``on`` or an error, ``off``
            leaves torch its default without fusion. The same update up to rounding.
    """

    fused: Literal["auto", "on", "off"] = "auto"

    @property
    def traits(self) -> OptimizerTraits:
        """Elementwise; torch has a fused kernel for CPUs."""
        return OptimizerTraits(name=type(self).__name__, on_host=True, update_size="element")

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs torch's AdamW over two decay groups."""
        groups = decay_groups(named_parameters, self.weight_decay)
        fusable = can_fuse(p for group in groups for _, p in group["params"])
        if self.fused == "on" and not fusable:
            raise ConfigError(
                "optimizer.fused=on needs floating-point parameters on a CPU or a CUDA device; "
                "write auto"
            )
        # False would also switch off torch's multi-tensor kernels; None leaves it the choice.
        fused = True if fusable and self.fused != "off" else None
        return optim.AdamW(groups, **self.adam_group, fused=fused)

    def state_bytes(self, name: str, parameter: Tensor) -> int:
        """Two moments in the dtype of the parameter, and a step counter."""
        return 2 * tensor_bytes(parameter) + STEP_BYTES
