"""What our strategies add to Lightning's: where weights are born, how state is written and read.

A strategy is the only thing that knows how parameters are laid out over ranks, so it is asked to
shard the network, to give access to a full parameter, and to save and load state. The task and the
checkpoint callback call these methods and know nothing else about distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_train.checkpoint import tensors
from llm_train.model.optimizer.clipping import global_norm


class Placement:
    """Mixed into a Lightning strategy, before it in the list of bases."""

    clips_gradients = False
    """Whether the strategy's own engine clips and measures the gradient norm."""

    state_format = "dcp"
    """Name of the files that ``save_state`` writes; equal formats load into each other."""

    also_reads: tuple[str, ...] = ()
    """Further formats that ``load_state`` reads."""

    tensor = 1
    """Neighbouring ranks that compute the same samples together."""

    reduction = "fast"
    """How gradients are summed over ranks; canonical: as one process would, bit for bit."""

    lightning_module: Any
    optimizers: list[Any]
    precision_plugin: Any
    reduce: Callable[..., Tensor]
    root_device: torch.device

    @property
    def shadow_dtype(self) -> torch.dtype | None:
        """Dtype of the copies of weights that products read; None: no copies are needed."""
        return torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None

    @property
    def parameter_device(self) -> torch.device:
        """Where parameters live between their uses."""
        return self.root_device

    def construction(self) -> AbstractContextManager[Any]:
        """Where modules are constructed: by default without memory."""
        return torch.device("meta")

    def shard(self, network: nn.Module) -> None:
        """Distributes the parameters of ``network``; nothing to do where they are replicated."""

    def gathered(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Context in which ``parameter`` may be overwritten in full."""
        return nullcontext()

    def slots_per_valid(self, valid: Tensor, slots: int) -> Tensor:
        """Target slots over valid targets, of all samples that a gradient is the mean over.

        Args:
            valid: targets of this rank in this step that count.
            slots: targets of the step over all ranks, whether they count or not.
        """
        return slots / self.reduce(valid, reduce_op="sum").clamp(min=1)

    def own_targets(self, targets: Tensor) -> Tensor:
        """The part of the targets (B, T) of a micro-batch that this rank scores."""
        return targets

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Global norm of the gradients, whatever their layout."""
        return global_norm(gradients)

    def reshard(self) -> None:
        """Frees whatever parameters a forward has left gathered; the shards hold their values."""

    def save_state(self, directory: Path) -> None:
        """Writes parameters and optimizer state, every rank its part."""
        tensors.save(directory, self.lightning_module.network, self.optimizers[0])

    def load_state(self, directory: Path, *, with_optimizer: bool) -> None:
        """Reads what ``save_state`` wrote into the live parameters and optimizer.

        Raises:
            CheckpointError: names, shapes or format do not fit.
        """
        optimizer = self.optimizers[0] if with_optimizer else None
        tensors.load(directory, self.lightning_module.network, optimizer)

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """Updates, then frees the gradients at once: they do not live through the next forward."""
        result = super().optimizer_step(optimizer, closure, model, **kwargs)  # type: ignore[misc]
        optimizer.zero_grad(set_to_none=True)
        return result
