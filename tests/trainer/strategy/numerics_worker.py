"""One rank of the numerics tests: records what a sharded step reduces, how, and how often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from llm_train.cli import main
from llm_train.testing.attach import attached

COUNTED = {
    "barrier",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
    "all_reduce",
    "all_gather_into_tensor",
    "all_gather_single",
}


class Reductions:
    """Counts reductions and gathers of whole tensors while it is active, by dtype."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.originals: dict[str, Any] = {}

    def __enter__(self) -> None:
        for name in COUNTED & set(dir(dist)):
            self.originals[name] = getattr(dist, name)
            setattr(dist, name, self._counted(name))

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(dist, name, original)

    def _counted(self, name: str) -> Any:
        original = self.originals[name]

        def counted(*args: Any, **kwargs: Any) -> Any:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
            if not tensors:
                self.counts[name] += 1
            elif max(tensor.numel() for tensor in tensors) > 8:  # skips a log point's metrics
                self.counts[f"{name} {tensors[0].dtype}"] += 1
            return original(*args, **kwargs)

        return counted


class Probe(pl.Callback):
    """Counts the reductions of each optimizer step and records dtypes after the last one."""

    def __init__(self) -> None:
        self.reductions = Reductions()
        self.seen: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self.training: dict[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.reductions.__enter__()
        pl_module.register_forward_pre_hook(lambda *_: self.calls.update(["module"]))

    def on_train_batch_end(self, *_: Any) -> None:
        """Before the callbacks of a last log point, and before validations and checkpoints."""
        self.calls["batch"] += 1
        self.training = {**self.calls, "barrier": self.reductions.counts["barrier"]}

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.reductions.__exit__()
        optimizer = trainer.optimizers[0]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states = [s for state in optimizer.state.values() for s in state.values() if s.numel() > 1]
        rotary = {b.dtype for n, b in pl_module.network.named_buffers() if "rotary" in n}
        table = pl_module.network.rotary
        rotary |= {t.dtype for t in vars(table).values() if isinstance(t, torch.Tensor)}
        angle = torch.arange(table.positions).double()[:, None] * table.base ** (
            -torch.arange(0, table.head_dim, 2).double() / table.head_dim
        )
        exact = torch.stack((angle.cos(), angle.sin()))
        self.seen = {
            "rotary_error": (table.table.double().cpu() - exact).abs().max().item(),
            "training": self.training,
            "collectives": self.reductions.counts,
            "parameters": sorted({str(p.dtype) for p in parameters}),
            "optimizer": sorted({str(s.dtype) for s in states}),
            "rotary": sorted(str(d) for d in rotary),
        }


def train(path: Path) -> dict[str, Any]:
    """Trains the configuration in ``path`` in this process and returns the records."""
    probe = Probe()
    try:
        with attached(probe):
            main(["fit", "-c", str(path)])
    except SystemExit as stop:
        if stop.code != 0:
            raise
    return probe.seen


if __name__ == "__main__":
    import json
    import os
    import sys

    seen = train(Path(sys.argv[2]))
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[1]).write_text(json.dumps(seen))
