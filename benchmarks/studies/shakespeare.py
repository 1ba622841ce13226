"""Measures the seconds until the held-out loss of Shakespeare-char is nanoGPT's 1.4697.

The time includes start-up, compilation and every validation, but not preparing the tokens. The loss
is that of all held-out text, not of random batches of it. The clock is that of this process, which
reads the file of metrics while the run writes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.studies.common import Settings

GOAL = 1.4697
CONFIG = "configs/shakespeare-char-gpu.yaml"
TINY = (
    "--budget=20 steps",
    "--validate_every=10 steps",
    "--batch={tokens: 256, sequence: 32, per_device: 8}",
    "--model.network.init_args={vocab_size: 65, layers: 1, width: 32, heads: 2, max_sequence: 32}",
    "--model.schedule.init_args.warmup=2 steps",
    "--model.schedule.init_args.decay=10 steps",
    "--model.compile=none",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
)


def text(settings: Settings) -> Path | None:
    """Returns the text to learn; a rehearsal without one makes up a text of 65 characters."""
    if settings.shakespeare:
        return Path(settings.shakespeare).resolve()
    if not settings.rehearse:
        return None
    path = Path(settings.directory) / "made-up.txt"
    letters = "".join(chr(33 + i) for i in range(64))  # the newline is the 65th
    path.write_text("\n".join(letters[i % 7 :] + letters[: i % 7] for i in range(300)))
    return path


def held_out(path: Path) -> list[tuple[int, float]]:
    """Returns steps and held-out losses from a file that may end in an incomplete line."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        record: dict[str, Any] = json.loads(line)
        if "val/loss" in record:
            found.append((record["step"], record["val/loss"]))
    return found


def main() -> None:
    settings = Settings.from_arguments()
    source = text(settings)
    if source is None:
        settings.emit("to 1.4697", skipped="no text given: --shakespeare FILE")
        return
    run = Path(settings.directory) / "shakespeare"
    arguments = [
        *("-c", CONFIG),
        f"--data.recipe.corpus.paths=[{source}]",
        f"--data.source.path={run}/tokens",
        f"--trainer.default_root_dir={run}/run",
        "--checkpoint.every=0 steps",  # only at the end
        *(TINY if settings.rehearse else ()),
    ]
    python = [sys.executable, "-m", "llm_train"]
    subprocess.run([*python, "prepare", *arguments], check=True, stdout=sys.stderr)
    goal = 100.0 if settings.rehearse else GOAL
    begin = time.perf_counter()
    with open(run / "fit.log", "w", encoding="utf-8") as log:
        fit = subprocess.Popen([*python, "fit", *arguments], stdout=log, stderr=log)
    losses: list[tuple[int, float]] = []
    while True:
        over = fit.poll() is not None
        losses = held_out(run / "run" / "metrics.jsonl")
        seconds = time.perf_counter() - begin
        if over or any(loss <= goal for _, loss in losses):
            break
        time.sleep(0.02)
    fit.terminate()
    fit.wait()
    reached = next(((step, loss) for step, loss in losses if loss <= goal), None)
    row: dict[str, Any] = {"curve": losses, "goal": goal}
    if reached:
        row |= {"seconds": seconds, "step": reached[0], "loss": reached[1]}
    else:
        last = [t for t in (run / "fit.log").read_text().splitlines() if t.strip()][-1:]
        best = min((loss for _, loss in losses), default=None)
        row |= {"error": f"not reached; best {best}; {''.join(last)[:120]}"}
    settings.emit("to 1.4697", **row)


if __name__ == "__main__":
    main()
