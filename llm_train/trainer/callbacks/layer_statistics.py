"""Norms of every layer's gradients, weights and updates, and the size of what its blocks put out.

The numbers travel with the reduction of a log point, and nothing waits for the device. In a step
that is measured, the cost is a copy of the weights until the update is done, three passes over
parameters, and one more forward of one micro-batch, which the ledger calls ``layer_statistics``.
Sharded tensors are measured whole: three small reductions for each layer.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from llm_train.context import Context, Part
from llm_train.errors import check_at_least
from llm_train.model.network.init import canonical_name
from llm_train.model.optimizer.clipping import global_norm
from llm_train.run_state import task_of
from llm_train.trainer.strategy.base import require_strategy

_NORMS = ("grad_norm", "weight_norm", "update_norm")


class LayerStatistics(Part, pl.Callback):
    """Logs ``layers/NAME/grad_norm`` (before clipping), ``weight_norm``, ``update_norm``.

    Of each block also ``output_rms``, the root of the mean square of what it puts out.

    Args:
        every: optimizer steps between two measurements; a multiple of trainer.log_every_n_steps.
    """

    def __init__(self, every: int = 100) -> None:
        self.every = every
        check_at_least(self, 1, "every", prefix="LayerStatistics.", hint=" optimizer step")
        self._layers: dict[str, list[nn.Parameter]] = defaultdict(list)
        self._none = torch.zeros(0)  # what a log point is given that nothing was measured for
        self._outputs: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._before: list[list[Tensor]] = []

    def problems(self, context: Context) -> Iterator[str]:
        """Gradients that nobody sees whole and unscaled when backward is done."""
        name = "trainer.callbacks: LayerStatistics"
        if self.every % (log_every := context.derived.log_every):
            yield (
                f"{name}: every={self.every} is no multiple of trainer.log_every_n_steps="
                f"{log_every}, with whose numbers its own go out; write {log_every}"
            )
        hidden = {
            context.strategy.name: context.strategy.flattens,
            "model.update=backward": context.update == "backward",
            "trainer.precision=16-mixed": context.precision == "16-mixed",
            "ignored targets": not context.unmasked,
        }
        for what in (what for what, hides in hidden.items() if hides):
            yield f"{name} cannot read a step's gradients with {what}; remove it"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rides with the reductions of log points."""
        task = task_of(pl_module)
        for name, parameter in task.network.named_parameters():
            path = canonical_name(name).split(".")
            layer = ".".join(path[:2]) if path[0] == "layers" else path[0]
            if parameter.requires_grad:
                self._layers[layer].append(parameter)
        self._none = torch.zeros_like(task.run_state.sums[:1]).repeat(
            1 + len(_NORMS) * len(self._layers) + len(task.network.blocks())
        )
        task.run_state.riders.append(self)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Reads the first micro-batch of a step that is measured, without dropout, once more."""
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if not first or (trainer.global_step + 1) % self.every:
            return
        task, self._outputs = task_of(pl_module), []
        hooks = [block.register_forward_hook(self._see) for block in task.network.blocks()]
        with (
            task.run_state.stopwatch.paused("layer_statistics"),
            torch.compiler.set_stance("force_eager"),  # the hooks would be compiled anew
            trainer.precision_plugin.val_step_context(),
            torch.no_grad(),
        ):
            task.network.eval()
            task.score(batch)
            task.network.train()
            require_strategy(trainer.strategy).reshard()
        for hook in hooks:
            hook.remove()

    def _see(self, block: nn.Module, given: object, output: Tensor) -> None:
        self._outputs.append(output.double().square().mean())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Looks at the gradients, which the update frees, and keeps the weights."""
        if self._outputs:
            for layer in self._layers.values():
                self._gradients.append(global_norm([p.grad for p in layer if p.grad is not None]))
                self._before.append([parameter.detach().clone() for parameter in layer])

    # --- at a log point ---------------------------------------------------------------------------

    def take(self) -> Tensor:
        """One, the norms of each layer and the mean squares of each block, or zeros alone."""
        if not self._before:
            return self._none
        norms = []
        layers = zip(self._layers.values(), self._gradients, self._before, strict=True)
        for layer, gradient, before in layers:
            weights = [parameter.detach() for parameter in layer]
            update = global_norm(torch._foreach_sub(weights, before))
            norms += [gradient, global_norm(weights), update]
        found = [torch.ones_like(norms[0]), *norms, *self._outputs]
        self._outputs, self._gradients, self._before = [], [], []
        return torch.stack([value.to(self._none) for value in found])

    def metrics(self, summed: Sequence[float]) -> dict[str, float]:
        """Norms are those of all ranks on each of them; outputs are means over ranks."""
        ranks, *values = summed
        if not ranks:
            return {}
        names = [f"{layer}/{norm}" for layer in self._layers for norm in _NORMS]
        found = dict(zip(names, values, strict=False))
        for index, square in enumerate(values[len(names) :]):
            found[f"layers.{index}/output_rms"] = square
        return {
            f"layers/{name}": (value / ranks) ** (0.5 if name.endswith("rms") else 1)
            for name, value in found.items()
        }
