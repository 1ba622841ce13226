"""What the task, its callbacks, the checkpoints and the strategy tell each other during a run.

Everything shared stands here, and each field names who may write it, so that a reader can follow a
value from where it is created to where it is read, and mypy can as well. Of these fields a resume
restores ``sums``; the others are filled anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from llm_train.derived import Derived
from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel, Network
from llm_train.model.network.confined import DocumentView
from llm_train.runtime.ledger import Ledger
from llm_train.runtime.stopwatch import Stopwatch
from llm_train.runtime.watch.thread import Watch


class Rider(Protocol):
    """Has numbers of its own summed over ranks with those of a log point: no further collective."""

    def take(self) -> Tensor:
        """(n,) what has gathered since the last call, on the device."""

    def metrics(self, summed: Sequence[float]) -> dict[str, float]:
        """What to log, from the n sums over all ranks; called in the order of the log points."""


@dataclass(kw_only=True)
class RunState:
    """What is shared while a run lasts; all may read it, and a field says who writes it.

    Attributes:
        sums: (2,) nats and tokens of this rank since the last log point, on the device. The task
            owns and adds to it; ``Metrics`` empties it at a log point, and ``Checkpoints`` fills it
            when a run resumes.
        gradient_norm: global norm before clipping, on the device; None before the first step. Owned
            by whoever clips: the strategy where its engine does, else the task.
        judge: called when ``gradient_norm`` of a step is known, by whoever clips; before the update
            where the task clips. Owned by ``Guard``.
        skipped: steps left out since the start. Owned by ``Guard``.
        held_out: results of the last validation by metric name. Owned by the task.
        realised: metrics of where so many samples came from. Owned by whoever builds the run.
        latest: metrics of the last published log point. Owned by ``Metrics``.
        latest_step: optimizer step that ``latest`` is of. Owned by ``Metrics``.
        scores: by metric, the step at which it was last measured and its value, for checkpoints to
            be judged by. Whoever measures adds.
        start_up: seconds until the end of step 1, and seconds of compilation. Owned by ``Metrics``.
        riders: whose numbers travel with those of a log point. Each adds itself before the first
            step; ``Metrics`` asks them.
        flush: publishes the log point that is not yet copied from the device; collective over
            ranks. Owned by ``Metrics``; ``Checkpoints`` calls it before it saves.
        stop_signal: number of the signal that ended the run, on all ranks; 0 is none. Owned by
            ``GracefulStop``.
        watch: hears signals and agrees with the other ranks on an end. Owned by ``Run``;
            ``GracefulStop`` passes its boundaries.
        stopwatch: measures training time on the device. Owned by the task; ``Metrics`` takes its
            laps, and whoever stops training for a while pauses it.
        ledger: where the wall time of this process goes. Owned by whoever builds the run; anybody
            may name an interval.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(2))
    gradient_norm: Tensor | None = None
    judge: Callable[[], None] = lambda: None  # nobody wants to know
    skipped: int = 0
    held_out: dict[str, float] = field(default_factory=dict)
    realised: Callable[[int], dict[str, float]] = lambda samples: {}
    latest: dict[str, float] = field(default_factory=dict)
    latest_step: int = 0
    scores: dict[str, tuple[int, float]] = field(default_factory=dict)
    start_up: dict[str, float] = field(default_factory=dict)
    riders: list[Rider] = field(default_factory=list)
    flush: Callable[[], None] = lambda: None  # nothing is on its way
    stop_signal: int = 0
    watch: Watch = field(default_factory=Watch)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    ledger: Ledger = field(default_factory=Ledger)

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds to ``scores``."""
        self.scores |= {name: (step, value) for name, value in metrics.items()}


class TaskBase(pl.LightningModule):
    """A LightningModule with a run state: what callbacks, checkpoints and strategies know of it.

    Attributes:
        network: weights on their devices, from ``configure_model`` on.
        network_config: what it was built from.
        documents: whether it sees the documents of a window apart.
        run_state: what is shared while a run lasts.
    """

    network: LanguageModel
    network_config: Network
    documents: DocumentView = "joined"

    def __init__(self) -> None:
        super().__init__()
        self.run_state = RunState()
        self._derived: Derived | None = None

    @property
    def derived(self) -> Derived:
        """The numbers of the run.

        Raises:
            ConfigError: ``bind`` was not called.
        """
        if self._derived is None:
            raise ConfigError(
                f"{type(self).__name__} does not know its run: call its bind(derived, ...) before "
                "trainer.fit or trainer.validate"
            )
        return self._derived

    def score(self, batch: Tensor) -> Tensor:
        """What a validation adds up over batches (B, T + 1)."""
        raise NotImplementedError

    def rederive(self, derived: Derived) -> None:
        """Receives other numbers, before training starts: those of a run that continues."""
        self._derived = derived


def task_of(module: pl.LightningModule) -> TaskBase:
    """``module`` by its full type; Lightning hands it to callbacks as any LightningModule.

    Raises:
        ConfigError: the module that is trained is not a ``TaskBase``.
    """
    if not isinstance(module, TaskBase):
        raise ConfigError(
            f"{type(module).__name__} has no run state that callbacks and strategies of llm_train "
            "could read; train llm_train's Task"
        )
    return module
