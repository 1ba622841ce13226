"""How long each phase of a step takes, on the timeline of the device.

Lightning tells its profiler when it fetches a batch and when it calls forward, backward and the
optimizer. The stopwatch marks those moments in the device's stream rather than on the host, which
runs ahead of a GPU: a phase gets the time for which it held the device up, and waiting for data
that arrives while the device is still busy costs nothing.
"""

from collections import defaultdict
from contextlib import ExitStack

import torch
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch.profiler import record_function

from llm_train.runtime.stopwatch import Lap, Stopwatch

# The last part of the names that Lightning gives to its actions. ``optimizer_step`` surrounds the
# last forward and backward of a step, and keeps what they leave of it.
PHASES = {
    "train_dataloader_next": "data wait",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
}
OTHER = "other"


class Phases(PassThroughProfiler):
    """A profiler that stands before the run's own, times the phases and names them in the trace."""

    def __init__(self, inner: Profiler, device: torch.device) -> None:
        super().__init__()
        self.inner = inner
        self._device = device
        self._open: list[ExitStack] = []  # one for each action that lasts
        self.restart()

    def restart(self) -> None:
        """Forgets what was timed."""
        self._stopwatch, self._now = Stopwatch(self._device), OTHER
        self._laps: list[tuple[str, Lap]] = []

    def seconds(self) -> dict[str, float]:
        """Time by phase from ``restart`` until now, all of it; waits for the device."""
        self._switch(self._now)
        self._laps[-1][1].wait()
        found: defaultdict[str, float] = defaultdict(float)
        for name, lap in self._laps:
            found[name] += lap.seconds
        return {name: found[name] for name in (*PHASES.values(), OTHER)}

    def start(self, action_name: str) -> None:
        """Begins an action, which may lie within another."""
        self.inner.start(action_name)
        self._open.append(ExitStack())
        if phase := PHASES.get(action_name.rpartition(".")[2]):
            self._open[-1].callback(self._switch, self._now)
            self._switch(phase)
            self._open[-1].enter_context(record_function(phase))

    def stop(self, action_name: str) -> None:
        """Ends the last action that ``start`` began."""
        self._open.pop().close()
        self.inner.stop(action_name)

    def _switch(self, phase: str) -> None:
        self._laps.append((self._now, self._stopwatch.lap()))
        self._now = phase
