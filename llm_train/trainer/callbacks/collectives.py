"""Counts what ranks say to each other: collectives per optimizer step, by kind.

Counted from torch's own record of a step, where every collective is an operator of ``c10d``,
whoever asked for it (DistributedDataParallel's reducer in C++, ``fully_shard``, DTensor, DeepSpeed)
and whatever carries it (gloo, NCCL). Replacing functions of ``torch.distributed`` would miss the
first, and gloo's own events call a reduce-scatter an all-reduce, because that is how gloo does it.

Counted are the last steps of a run, so that nothing measured before them (peak memory) knows of the
recording, and everything that only the first steps do is over. Log points, validation and
checkpoints lie outside a step and are not counted.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable

import lightning.pytorch as pl
from torch.profiler import ProfilerActivity, profile

from llm_train.run_state import task_of
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.logger.base import log_event

STEPS = 2
EVENT = "collectives"
# Operators begin like this, and end in what says how the tensors came. The first match counts.
_KINDS = {
    "allreduce": "all-reduce",
    "reduce_scatter": "reduce-scatter",
    "allgather": "all-gather",
    "alltoall": "all-to-all",
    "recv": "receive",
    "monitored_barrier": "barrier",
    **{kind: kind for kind in ("broadcast", "reduce", "gather", "scatter", "send", "barrier")},
}
_OPERATOR = re.compile(rf"c10d::_*({'|'.join(_KINDS)})")


class Collectives(EachStep):
    """Writes an event ``collectives`` with the calls per optimizer step to ``metrics.jsonl``.

    Must be the first callback, so that what others do at a step boundary is not part of the step.
    Rank 0 alone counts, since all ranks take part in a collective.
    """

    def __init__(self) -> None:
        self._profiler: profile | None = None
        self._counts: Counter[str] = Counter()
        self._steps = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Starts recording before the first micro-batch of one of the last steps."""
        if batch_idx % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        if trainer.global_step >= task_of(pl_module).derived.total_steps - STEPS:
            self._profiler = profile(activities=[ProfilerActivity.CPU])
            self._profiler.start()

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts when the update is done; writes after the last step."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self._counts += count(e.name for e in profiler.events())  # type: ignore[no-untyped-call]
        self._steps += 1
        if trainer.global_step == task_of(pl_module).derived.total_steps:
            per_step = {kind: calls / self._steps for kind, calls in sorted(self._counts.items())}
            log_event(trainer.loggers, EVENT, trainer.global_step, per_step=per_step)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Drops the recording; the exception is what matters."""
        if self._profiler is not None:
            with contextlib.suppress(RuntimeError):
                self._profiler.stop()


def count(operators: Iterable[str]) -> Counter[str]:
    """Calls by kind among the names of recorded operators.

    >>> names = ["aten::mm", "c10d::_reduce_scatter_base_", "c10d::allreduce_", "c10d::allreduce_"]
    >>> sorted(count(names).items())
    [('all-reduce', 2), ('reduce-scatter', 1)]
    """
    found = (_OPERATOR.match(name) for name in operators)
    return Counter(_KINDS[match[1]] for match in found if match)
