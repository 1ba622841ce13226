"""Runs the command line on one CUDA device over a grid of settings, and prints a table.

    python scripts/rehearse.py --jobs 12                 all cells, in 12 processes
    python scripts/rehearse.py --only 'zero3|graphs'     cells whose name the expression finds
    python scripts/rehearse.py --list

Each cell of ``rehearsal_cells.py`` is checked, trained for 16 steps with checkpoints, validations
and perhaps a profile, and then resumed, validated or made to generate, each in a process of its
own as a user would start it. ``check`` may refuse a cell; a refusal that comes later is a failure.
Between log points torch's detector counts operations that wait for the device: none may.
DeepSpeed's own waits are counted apart (``docs/strategies.md`` names them).

The device may be a simulated one, whose kernels compute nothing: what a run reads is then
arbitrary, and a run that read its loss would end at the first log point. Whether kernels compute is
found out by multiplying two matrices. If they do not, ``trainer.strategy.reduce``, through which a
run reads all numbers by which it decides, gives plausible ones. If they do, losses must be finite,
and the first loss must be the same in all cells, since first weights and first data are.

Results are lines of ``OUT/results.jsonl``; cells that have passed are not run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# Before torch: a process that has asked CUDA for its devices cannot fork any that use them.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
    os.environ.setdefault(name, "1")

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from rehearsal_cells import (
    LOG_EVERY,
    RESUMED_STEPS,
    SAVE_EVERY,
    STEPS,
    VALIDATE_EVERY,
    VOCABULARY,
    Cell,
    cells,
    part,
)

from llm_train.cli import load_settings, main
from llm_train.runtime import yaml12
from llm_train.testing.attach import attached
from llm_train.testing.ranks import launched_as
from llm_train.trainer.logger.records import read_metrics

QUIET_FROM = 4  # earlier steps allocate, compile and capture
PROFILED_FROM = 10
# What a run would otherwise import late, in every process. Not Inductor, which asks for devices.
IMPORTED = (
    "llm_train.run.training",
    "llm_train.checkpoint.callback",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor.parallel",
    "torch._dynamo",
    "sympy",
)

Result = dict[str, Any]  # one line of results.jsonl


# --- what watches a run ---------------------------------------------------------------------------


class Watch(pl.Callback):
    """Counts waits for the device by the line that waits; gives plausible numbers if none are."""

    def __init__(self, *, profiled: bool) -> None:
        self.profiled = profiled
        self.waits: Counter[str] = Counter()
        self.simulated = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds out what kind of device this is."""
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        warnings.filterwarnings("always", "called a synchronizing CUDA operation")
        warnings.showwarning = self._warned
        self.simulated = is_simulated(trainer.strategy.root_device)
        if self.simulated:
            reduce = trainer.strategy.reduce
            trainer.strategy.reduce = lambda *a, **k: plausible(reduce(*a, **k))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Sets what holds until the next micro-batch begins."""
        step = trainer.global_step + 1  # the one that begins
        quiet = step >= QUIET_FROM and all(
            step % n for n in (LOG_EVERY, SAVE_EVERY, VALIDATE_EVERY)
        )
        quiet = quiet and not (self.profiled and step >= PROFILED_FROM)
        torch.cuda.set_sync_debug_mode("warn" if quiet else "default")

    def on_train_end(self, *_: Any) -> None:
        """The last validation and checkpoint may wait."""
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        """Or the teardown would be counted as well."""
        torch.cuda.set_sync_debug_mode("default")

    def _warned(self, message: Warning | str, category: type[Warning], *where: Any) -> None:
        if "synchronizing CUDA operation" not in str(message):
            print(f"{category.__name__}: {message}", file=sys.stderr)
            return
        frames = traceback.extract_stack()[:-1]
        own = [f for f in frames if re.search(r"/(llm_train|deepspeed|lightning)/", f.filename)]
        place = _short("{0.filename}:{0.lineno}".format((own or frames)[-1]))
        if place not in self.waits:
            print(f"waits: {place}", *traceback.format_list(frames[-12:]), file=sys.stderr)
        self.waits[place] += 1


def is_simulated(device: torch.device) -> bool:
    """Whether kernels compute nothing."""
    factor = torch.arange(256, dtype=torch.float32).view(16, 16)
    return not torch.equal((factor.to(device) @ torch.eye(16).to(device)).cpu(), factor)


def plausible(result: Any) -> Any:
    """Sums of nats and of tokens are one, and so the loss; nobody wishes to stop, the third number.

    The copy is enqueued like any other and waits for nothing.
    """
    if isinstance(result, torch.Tensor) and result.is_cuda:
        values = torch.zeros(result.shape, dtype=result.dtype, pin_memory=True)
        if values.is_floating_point():
            values.fill_(1).view(-1)[2:3] = 0
        with torch.no_grad():
            result.copy_(values, non_blocking=True)
    return result


def _short(place: str) -> str:
    parts = Path(place).parts
    start = parts.index("site-packages") + 1 if "site-packages" in parts else -3
    return "/".join(parts[start:])


# --- one cell -------------------------------------------------------------------------------------


def run_cell(cell: Cell, out: Path, timeout: float) -> Result:
    """Everything that is done with a cell, each in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"{cell.name.replace(' ', '-')}-", dir=out))
    run_dir, config, log = folder / "run", folder / "config.yaml", folder / "log"
    config.write_text(yaml12.dump(configuration(cell, out, run_dir)))
    start = time.monotonic()
    result: Result = {"name": cell.name, "log": str(log), **cell.choice}

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
        "generate": ("generate", str(run_dir), "--tokens=20", "--temperature=0", "--device=cuda"),
    }
    for arguments in (("fit", *options, *profile), then[cell.choice["then"]]):
        if failure := run(*arguments):
            return done("failed", f"{arguments[0]}: {failure}")
        if found := _read(folder / "found.json"):
            result.update(found)
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
    own = [place for place in result["waits"] if not place.startswith("deepspeed/")]
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
        code = int(stop.code or 0)
    except BaseException as error:
        traceback.print_exc()
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename
        ]
        place = _short(f"{frames[-1].filename}:{frames[-1].lineno}") if frames else "torch"
        print(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]} [{place}]")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def prepare(out: Path) -> None:
    """Imports what cells need, and writes their data."""
    torch.set_num_threads(1)
    for module in IMPORTED:
        importlib.import_module(module)
    characters = [chr(48 + index) for index in range(VOCABULARY)]
    text = "".join(characters[(7 * i * i + i // 3) % VOCABULARY] for i in range(6000))
    (out / "text.txt").write_text(text)
    config = out / "prepare.yaml"
    plain = Cell("prepare", {})
    values = configuration(plain, out, out / "prepared")
    values["model"]["optimizer"] = part("AdamW", learning_rate=0.01)
    config.write_text(yaml12.dump(values))
    log = out / "prepare.log"
    if not (out / "data").exists() and (
        failure := forked(lambda: main(["prepare", "-c", str(config)]), log, 120)
    ):
        sys.exit(f"the data cannot be prepared: {failure}; see {log}")
    values["trainer"]["accelerator"] = "cpu"  # parsed once here, since parsing warms caches
    config.write_text(yaml12.dump(values))
    load_settings(["-c", str(config)])


def run_all(wanted: list[Cell], out: Path, arguments: argparse.Namespace) -> list[Result]:
    """Runs cells in ``--jobs`` processes; each appends its line to the results."""
    results = out / "results.jsonl"
    started, running, waiting = time.monotonic(), {}, list(wanted)
    while waiting or running:
        late = time.monotonic() - started > arguments.limit_seconds
        if late and waiting:
            print(f"{len(waiting)} cells are left for the next call", flush=True)
            waiting = []
        while waiting and len(running) < arguments.jobs:
            cell = waiting.pop(0)
            running[start_cell(cell, out, arguments.timeout)] = cell
        with suppress(KeyError):
            print(line(_read_last(results, running.pop(os.wait()[0]).name)), flush=True)
    return list(_latest(results).values())


def start_cell(cell: Cell, out: Path, timeout: float) -> int:
    """Forks a process for a cell; what it may not say itself, its exit status does not either."""
    child = os.fork()
    if child:
        return child
    try:
        result = run_cell(cell, out, timeout)
    except BaseException as error:
        traceback.print_exc()
        result = {"name": cell.name, "state": "failed", "why": repr(error), "seconds": 0.0}
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    os._exit(0)


# --- results --------------------------------------------------------------------------------------


def _read(path: Path) -> Result:
    return json.loads(path.read_text()) if path.exists() else {}


def _latest(results: Path) -> dict[str, Result]:
    lines = results.read_text().splitlines() if results.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}


def _read_last(results: Path, name: str) -> Result:
    lost = {"name": name, "state": "failed", "why": "its process died", "seconds": 0.0}
    return _latest(results).get(name, lost)


def line(result: Result) -> str:
    """One cell."""
    waits = sum(result.get("waits", {}).values())
    shown = f"{waits:4} waits" if waits else " " * 10
    return f"{result['state']:7} {result['seconds']:5.0f} s {shown}  {result['name']}" + (
        f"\n{'':10}{result['why']}" if result["state"] == "failed" else ""
    )


def table(found: list[Result], wanted: list[Cell]) -> tuple[str, bool]:
    """The summary, and whether all is well."""
    must = {cell.name for cell in wanted if cell.must_refuse}
    states = Counter(result["state"] for result in found)
    odd = [r for r in found if r["state"] == "refused" and r["name"] not in must]
    first = [r["first_loss"] for r in found if r["state"] == "ok" and not r["simulated"]]
    middle = statistics.median(first) if first else 0.0
    strange = [
        r
        for r in found
        if r.get("first_loss") and first and abs(r["first_loss"] / middle - 1) > 0.05
    ]
    waits: Counter[str] = Counter()
    for result in found:
        waits.update(dict.fromkeys(result.get("waits", {}), 1))
    lines = ["", f"{'cells':9}{len(found):5} of {len(wanted)}"]
    lines += [f"{state:9}{states[state]:5}" for state in ("ok", "refused", "failed")]
    lines += [
        f"{'simulated' if r else 'real'} device"
        for r in {x["simulated"] for x in found if "simulated" in x}
    ]
    lines += [f"waits in {count:3} cells: {place}" for place, count in waits.most_common()]
    lines += [f"refused, unforeseen: {r['name']}: {r['why']}" for r in odd]
    lines += [f"first loss {r['first_loss']} is far from {middle}: {r['name']}" for r in strange]
    lines += [f"failed: {r['name']}: {r['why']}" for r in found if r["state"] == "failed"]
    return "\n".join(lines), not states["failed"] and not strange and len(found) == len(wanted)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Rehearses runs on one CUDA device.")
    parser.add_argument("--out", type=Path, default=Path("runs/rehearsal"), help="logs and results")
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time")
    parser.add_argument("--only", default="", metavar="REGEX", help="cells whose name it finds")
    parser.add_argument("--named", action="store_true", help="the named cells alone")
    parser.add_argument("--limit-seconds", type=float, default=math.inf, help="then start no more")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one process")
    parser.add_argument("--list", action="store_true", help="print the names")
    return parser.parse_args()


def rehearse() -> int:
    """Runs what is wanted and has not passed; returns the exit status."""
    arguments = parse()
    wanted = [c for c in cells() if re.search(arguments.only, c.name)]
    wanted = [c for c in wanted if c.named or not arguments.named]
    if arguments.list:
        print(*(cell.name for cell in wanted), sep="\n")
        return 0
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    prepare(out)
    before = _latest(out / "results.jsonl")
    passed = {name for name, result in before.items() if result["state"] != "failed"}
    print(f"logs in {out}", flush=True)
    run_all([cell for cell in wanted if cell.name not in passed], out, arguments)
    names = {cell.name for cell in wanted}
    found = [r for name, r in _latest(out / "results.jsonl").items() if name in names]
    text, well = table(found, wanted)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(rehearse())
