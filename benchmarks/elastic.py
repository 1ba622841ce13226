"""Resumes every checkpoint under every parallel configuration, in fp32 on a CPU.

Each row of the matrix trains without interruption and keeps the checkpoint of its third step; each
column continues from that checkpoint. A cell is the largest relative difference of a loss from the
row's own run, ``=`` where all losses are bitwise equal, or the line that refused the resume::

    python -m benchmarks.elastic --out FOLDER [--from fsdp-2 ...] [--to zero3-4 ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llm_train.checkpoint.store import CheckpointStore
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

STEPS, SAVED = 6, 3
TOLERANCE = 1e-6


def _fsdp(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "FSDP", "init_args": arguments}


# Maps a name to a strategy and a number of ranks, where 0 is a process without a launcher.
STRATEGIES: dict[str, tuple[Any, int]] = {
    "single": ("single", 0),
    **{f"ddp-{n}": ("ddp", n) for n in (1, 2, 4)},
    **{f"fsdp-{n}": ("fsdp", n) for n in (1, 2, 4)},
    "hsdp-4": (_fsdp(replicas=2), 4),
    "tp-2": (_fsdp(tensor=2), 2),
    "tp-4": (_fsdp(tensor=4), 4),
    "fsdp-tp-4": (_fsdp(tensor=2), 4),
    **{f"zero{stage}-{n}": (f"zero{stage}", n) for stage in (1, 2, 3) for n in (1, 2, 4)},
}


def config(run_dir: Path, name: str) -> dict[str, Any]:
    """Returns the same run for every parallel configuration: clipping, accumulation, no dropout."""
    network = "model__network__init_args__"
    settings: dict[str, Any] = {
        f"{network}dropout": 0.0,
        f"{network}width": 32,
        f"{network}heads": 4,
        f"{network}mlp_width": 256,
        f"{network}pad_vocab_to": 4,
        "checkpoint__every": f"{SAVED} steps",
        "trainer__gradient_clip_val": 0.25,
    }
    return tiny(run_dir, steps=STEPS, trainer__strategy=STRATEGIES[name][0], **settings)


class Matrix:
    """Runs cells; each uninterrupted run is made once and kept in ``folder``."""

    def __init__(self, fork_server: ForkServer, folder: Path) -> None:
        self.fork_server = fork_server
        self.folder = folder
        self._rows: dict[str, dict[int, float]] = {}

    def row(self, name: str) -> dict[int, float]:
        """Returns the losses of the uninterrupted run, by step."""
        if name not in self._rows:
            code, log = self._fit(name, self.folder / name)
            if code:
                raise RuntimeError(f"{name} does not train: {log[-2000:]}")
            self._rows[name] = _losses(self.folder / name)
        return self._rows[name]

    def cell(self, start: str, to: str) -> dict[str, Any]:
        """Resumes the checkpoint of ``start`` under ``to`` and compares the losses."""
        expected = self.row(start)
        saved = self.folder / start / "checkpoints" / f"step-{SAVED:08d}"
        run_dir = self.folder / f"{start}-to-{to}"
        code, log = self._fit(to, run_dir, "--resume", str(saved))
        found: dict[str, Any] = {"from": start, "to": to}
        if code:
            lines = [line for line in log.splitlines() if line.startswith("llm-train: error: ")]
            return found | {"refused": lines[-1] if lines else log[-500:]}
        losses = _losses(run_dir)
        assert sorted(losses) == list(range(SAVED + 1, STEPS + 1)), losses
        differences = [abs(losses[s] - expected[s]) / expected[s] for s in losses]
        end = CheckpointStore(run_dir / "checkpoints").newest().path
        assert end is not None
        metadata = json.loads((end / "manifest.json").read_text())["metadata"]
        samples = metadata["data"]["consumed"] - STEPS * metadata["samples_per_step"]
        return found | {"difference": max(differences), "samples_off": samples}

    def _fit(self, name: str, run_dir: Path, *options: str) -> tuple[int, str]:
        path = write(run_dir.with_suffix(".yaml"), config(run_dir, name))
        log = run_dir.with_suffix(".log")
        ranks = STRATEGIES[name][1]
        statuses = self.fork_server.run("fit", "-c", str(path), *options, ranks=ranks, log=log)
        return max(abs(status) for status in statuses), log.read_text()


def _losses(run_dir: Path) -> dict[int, float]:
    records = read_metrics(run_dir / "metrics.jsonl")
    return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}


def markdown(cells: list[dict[str, Any]]) -> str:
    """Formats the matrix as a table."""
    starts = list(dict.fromkeys(cell["from"] for cell in cells))
    ends = list(dict.fromkeys(cell["to"] for cell in cells))
    at = {(cell["from"], cell["to"]): _shown(cell) for cell in cells}
    lines = [f"| from \\ to | {' | '.join(ends)} |", "|---" * (len(ends) + 1) + "|"]
    lines += [
        f"| {start} | {' | '.join(at.get((start, end), '') for end in ends)} |" for start in starts
    ]
    return "\n".join(lines)


def _shown(cell: dict[str, Any]) -> str:
    if "refused" in cell:
        return "refused"
    if cell["samples_off"]:
        return f"{cell['samples_off']} samples off"
    return "=" if cell["difference"] == 0.0 else f"{cell['difference']:.0e}"


def main() -> int:
    """Prints each cell as it is made, then the table; returns 1 if a cell is out of tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--from", dest="start", nargs="*", default=list(STRATEGIES))
    parser.add_argument("--to", nargs="*", default=list(STRATEGIES))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    cells = []
    with open(arguments.out / "cells.jsonl", "a") as file:
        matrix = Matrix(ForkServer(), arguments.out)
        for start in arguments.start:
            for to in arguments.to:
                cells.append(matrix.cell(start, to))
                print(json.dumps(cells[-1]), file=file, flush=True)
                print(start, to, _shown(cells[-1]), flush=True)
    print(markdown(cells))
    good = [c.get("difference", 1.0) <= TOLERANCE and not c["samples_off"] for c in cells]
    print(f"{sum(good)} of {len(cells)} cells within {TOLERANCE:g}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
