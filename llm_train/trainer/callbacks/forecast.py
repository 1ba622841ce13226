"""A plan against what is there, once, when a run has taken its tenth step.

A plan comes as the file that ``plan --json`` wrote, so that a run imports nothing of what made it.
Bytes are read from the tensors that live, gradients just before the update, when they are complete.
On a CUDA device the allocator's peak and the time of a step are known as well. What is not known is
said to be unknown: a forecast never stops a run.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from llm_train.errors import ConfigError
from llm_train.model.network.shadow import shadowed
from llm_train.run_state import TaskBase, task_of
from llm_train.runtime.devices import KINDS
from llm_train.runtime.sharded import tensor_bytes
from llm_train.runtime.terminal import say, section
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.logger.base import log_event

STEP = 10
PARTS = ("parameters", "copies", "gradients", "optimizer")


def planned(path: Path, run: Mapping[str, object]) -> dict[str, float]:
    """Bytes and seconds that the file of ``plan --json`` predicts, by the names of ``Forecast``.

    Args:
        path: of the file.
        run: what the plan must have been made for, by the names in the file.

    Raises:
        ConfigError: no such file, or the plan of another run.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        configured = values["configured"]
        predicted = {"peak": configured["bytes"]["peak"], "step": configured["seconds_per_step"]}
        if values["simulated"] is not None:  # else the tensors are not in torch's hands alone
            predicted |= {part: configured["bytes"][part] for part in PARTS}
        about = {key: configured[key] for key in run}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"--plan={path} is not what plan --json writes ({type(error).__name__}); "
            f"make it with: llm-train plan -c FILE.yaml --json {path}"
        ) from error
    for key, value in run.items():
        if about[key] != value:
            raise ConfigError(
                f"--plan={path} was made for {key}={about[key]}, and this run has {value}; plan "
                "it again with the same options"
            )
    return predicted


class Forecast(EachStep):
    """Compares a forecast with what is there.

    Args:
        predicted: bytes by ``PARTS`` and ``peak``, seconds by ``step``; 0 is not compared.
    """

    def __init__(self, predicted: Mapping[str, float]) -> None:
        self.predicted = {name: value for name, value in predicted.items() if value}
        self._gradients = 0
        self._due = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run compares at its own tenth step."""
        self._due = trainer.global_step + STEP

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Counts gradients while they are complete."""
        if trainer.global_step == self._due - 1:
            self._gradients = size(p.grad for p in task_of(pl_module).network.parameters())

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says it once, at the end of the tenth step."""
        if trainer.global_step != self._due:
            return
        try:
            measured = self._measured(trainer, task_of(pl_module))
        except Exception as error:  # whatever an optimizer or a strategy keeps, training goes on
            say(f"\nnothing to compare with the plan: {type(error).__name__}: {error}")
            return
        rows = {n: _row(n, value, measured.get(n)) for n, value in self.predicted.items()}
        say(section(f"predicted and measured after {STEP} steps, one rank", rows))
        known = {name: value for name, value in self.predicted.items() if measured.get(name)}
        found = {name: measured[name] for name in known}
        log_event(trainer.loggers, "forecast", trainer.global_step, predicted=known, measured=found)

    def _measured(self, trainer: pl.Trainer, task: TaskBase) -> dict[str, float]:
        network, device = task.network, task.device
        found: dict[str, float] = {
            "parameters": size(network.parameters()),
            "copies": size(module.shadow for module in shadowed(network)),
            "gradients": self._gradients,
            "optimizer": size(
                value
                for optimizer in trainer.optimizers
                for state in optimizer.state.values()
                for value in state.values()
            ),
        }
        if KINDS[device.type].peak_memory:
            found["peak"] = torch.accelerator.max_memory_allocated(device)
            rate = task.run_state.latest.get("throughput/tokens_per_s")
            found["step"] = task.derived.tokens_per_step / rate if rate else 0.0
        return found


def size(values: Iterable[object]) -> int:
    """Bytes of this rank's part of all that are tensors."""
    return sum(tensor_bytes(value) for value in values if isinstance(value, Tensor))


def _row(name: str, predicted: float, measured: float | None) -> str:
    """One comparison.

    >>> _row("peak", 3 * 2**30, 2 * 2**30)
    '3.000 GiB predicted, 2.000 GiB measured, +50.0%'
    >>> _row("step", 0.5, None)
    '0.500 s predicted, unknown here'
    """
    unit, scale = ("s", 1.0) if name == "step" else ("GiB", 2.0**30)
    if name != "step" and max(predicted, measured or 0) < scale / 10:
        unit, scale = "MiB", 2.0**20
    start = f"{predicted / scale:,.3f} {unit} predicted"
    if not measured:
        return f"{start}, unknown here"
    return f"{start}, {measured / scale:,.3f} {unit} measured, {predicted / measured - 1:+.1%}"
