"""One cell from its configuration to its result, each command in a process of its own.

The process of a cell has imported everything and never touches the device itself, so that those it
forks can.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from rehearsal.cells import LOG_EVERY, RESUMED_STEPS, STEPS, Cell, part
from rehearsal.watch import Watch, short

from llm_train.cli import main
from llm_train.runtime import yaml12
from llm_train.testing.attach import attached
from llm_train.testing.ranks import launched_as
from llm_train.trainer.logger.records import read_metrics

Result = dict[str, Any]  # one line of results.jsonl


def run_cell(cell: Cell, out: Path, timeout: float) -> Result:
    """Everything that is done with a cell, each in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"{cell.name.replace(' ', '-')}-", dir=out))
    run_dir, config, log = folder / "run", folder / "config.yaml", folder / "log"
    config.write_text(yaml12.dump(configuration(cell, out, run_dir)))
    start = time.monotonic()
    result: Result = {"name": cell.name, "log": str(log), **cell.choice}
    waits: Counter[str] = Counter()

    def done(state: str, why: str = "") -> Result:
        seconds = round(time.monotonic() - start, 1)
        return {**result, "state": state, "why": why, "seconds": seconds}

    def run(*arguments: str) -> str:
        return forked(lambda: command(cell, arguments, folder / "found.json"), log, timeout)

    options = ("-c", str(config))
    if failure := run("check", *options):
        if log.read_text(errors="replace").count("Traceback"):
            return done("failed", f"check: {failure}")
        return done("refused", failure)
    profile = ("--profile",) if cell.choice["extra"] == "profile" else ()
    resumed = (f"--budget={RESUMED_STEPS} steps", "--resume=auto")
    then = {
        "resume": ("fit", *options, *resumed),
        "validate": ("validate", *options),
        "generate": (
            *("generate", str(run_dir), "--prompt=0", "--tokens=20"),
            *("--temperature=0", "--device=cuda"),
        ),
    }
    for arguments in (("fit", *options, *profile), then[cell.choice["then"]]):
        if failure := run(*arguments):
            return done("failed", f"{arguments[0]}: {failure}")
        if arguments[0] == "fit":
            found = json.loads((folder / "found.json").read_text())
            waits.update(found["waits"])
            result.update(found, waits=waits)
    last = RESUMED_STEPS if cell.choice["then"] == "resume" else STEPS
    failure = judge(result, run_dir, last)
    if cell.must_refuse:
        failure = "check let it pass"
    return done("failed" if failure else "ok", failure)


def judge(result: Result, run_dir: Path, last: int) -> str:
    """What is wrong with a run that came to its end."""
    records = read_metrics(run_dir / "metrics.jsonl")
    losses = {r["step"]: r["train/loss"] for r in records if "train/loss" in r}
    result["first_loss"], result["last_loss"] = losses.get(LOG_EVERY), losses.get(last)
    if max(losses, default=0) != last:
        return f"ended after step {max(losses, default=0)} of {last}"
    if not all(map(math.isfinite, losses.values())):
        return f"a loss is not finite: {losses}"
    # torch's scaler asks the device whether to call an optimizer that cannot skip by itself.
    others = ("deepspeed/", "llm_train/trainer/loss_scaling.py")
    own = [place for place in result["waits"] if not place.startswith(others)]
    return f"waits for the device: {', '.join(own)}" if own else ""


def configuration(cell: Cell, out: Path, run_dir: Path) -> dict[str, Any]:
    """The YAML of a cell."""
    config = data(out) | {"trainer": {"default_root_dir": str(run_dir)}}
    for key, value in cell.values.items():
        *path, last = key.split(".")
        place = config
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
        if value is None:
            del place[last]
    return json.loads(json.dumps(config))  # values are shared between cells, and YAML has aliases


def data(out: Path) -> dict[str, Any]:
    """Text that a tokenizer of ``VOCABULARY`` characters reads: sampling needs one."""
    recipe = part(
        "Tokenize",
        corpus=part("TextFiles", paths=[str(out / "text.txt")]),
        tokenizer=part("Characters"),
        split=part("TailSplit", fraction=0.1),
    )
    return {"data": {"source": part("TokenShards", path=str(out / "data")), "recipe": recipe}}


def command(cell: Cell, arguments: Sequence[str], found: Path) -> None:
    """The command line in this process."""
    if cell.launched and arguments[0] != "generate":
        os.environ.update(launched_as("torchrun", 0, 1, find_free_network_port()))
    watch = Watch(profiled="--profile" in arguments)
    try:
        with attached(watch):
            main(arguments)
    finally:
        if arguments[0] == "fit":
            device = torch.cuda.get_device_name() if torch.cuda.is_initialized() else ""
            kept = {"waits": dict(watch.waits), "simulated": watch.simulated, "device": device}
            found.write_text(json.dumps(kept))


# --- processes ------------------------------------------------------------------------------------


def forked(work: Callable[[], None], log: Path, timeout: float) -> str:
    """Runs ``work`` in a child whose output goes to ``log``; says how it failed, or nothing."""
    before = log.stat().st_size if log.exists() else 0
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        become(work, log)
    deadline = time.monotonic() + timeout
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"not done after {timeout:.0f} s"
        time.sleep(0.02)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = log.read_bytes()[before:].decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()] or ["no output"]
    return said[-1] if code else ""


def become(work: Callable[[], None], log: Path) -> NoReturn:
    """Turns this fork into a process that does ``work``."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(file, number)
    code = 70
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code)
    except BaseException as error:
        traceback.print_exc()
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename
        ]
        place = short(f"{frames[-1].filename}:{frames[-1].lineno}") if frames else "torch"
        print(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]} [{place}]")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
