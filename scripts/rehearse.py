"""Runs the command line on one CUDA device over a grid of settings, and prints a table.

    python scripts/rehearse.py --jobs 12                 all cells, in 12 processes
    python scripts/rehearse.py --only 'zero3|graphs'     cells whose name the expression finds
    python scripts/rehearse.py --list

Each cell of ``rehearsal/cells.py`` is checked, trained for 16 steps with checkpoints, validations
and perhaps a profile, and then resumed, validated or made to generate, each in a process of its
own as a user would start it. ``check`` may refuse a cell; a refusal that comes later is a failure.
Between log points torch's detector counts operations that wait for the device: none may.
DeepSpeed's own waits are counted apart (``docs/strategies.md`` names them).

The device may be a simulated one, whose kernels compute nothing (``rehearsal/watch.py``). On a real
one losses must be finite, and the first must be alike in all cells with the same loss and
optimizer, since first weights and first data are the same.

Results are lines of ``OUT/results.jsonl``; cells that have passed are not run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import statistics
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch
from rehearsal.cells import VOCABULARY, Cell, cells, part
from rehearsal.run import Result, configuration, forked, run_cell
from rehearsal.watch import is_simulated

from llm_train.cli import load_settings, main
from llm_train.runtime import yaml12

# What a run would otherwise import late, in every process. Not Inductor, which asks for devices.
IMPORTED = (
    "llm_train.run.training",
    "llm_train.checkpoint.callback",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor.parallel",
    "torch._dynamo",
    "sympy",
)
FIRST_LOSS_TOLERANCE = 0.05  # of the mean over four steps, whatever the precision


def prepare(out: Path) -> None:
    """Imports what cells need, and writes their data."""
    # A process that has asked CUDA itself for its devices cannot fork others that use them.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        os.environ.setdefault(name, "1")
    # A simulated device has no virtual memory whose segments could grow.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:False")
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


def probe(out: Path) -> None:
    """Finds out what kind of device this is, in a process of its own.

    A simulated one has no virtual memory, which segments that grow are made of.
    """

    def find_out() -> None:
        if is_simulated(torch.device("cuda")):
            sys.exit("simulated")

    failure = forked(find_out, out / "probe.log", 120)
    if failure == "simulated":
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:False"
    elif failure:
        sys.exit(f"no usable CUDA device: {failure}; see {out / 'probe.log'}")


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
    waits: Counter[str] = Counter()
    for result in found:
        waits.update(result.get("waits", {}).keys())
    devices = {f"{r['device']}{', simulated' * r['simulated']}" for r in found if "device" in r}
    strange = unlike(found)
    lines = ["", *sorted(devices), f"{'cells':9}{len(found):5} of {len(wanted)}"]
    lines += [f"{state:9}{states[state]:5}" for state in ("ok", "refused", "failed")]
    lines += [f"waits in {count:3} cells: {place}" for place, count in waits.most_common()]
    for result in found:
        name, why = result["name"], result["why"]
        if result["state"] == "refused" and name not in must:
            lines.append(f"refused, unforeseen: {name}: {why}")
        elif result["state"] == "failed":
            lines.append(f"failed: {name}: {why}")
    lines += strange
    return "\n".join(lines), not states["failed"] and not strange and len(found) == len(wanted)


def unlike(found: list[Result]) -> list[str]:
    """Cells whose first loss is far from that of others with the same loss and optimizer."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in found:
        if result["state"] == "ok" and not result["simulated"]:
            kind = (result["optimizer"], result["loss"], result["extra"] == "learned")
            groups.setdefault(tuple(map(str, kind)), []).append(result)
    lines = []
    for group in groups.values():
        usual = statistics.median(result["first_loss"] for result in group)
        for result in group:
            if abs(result["first_loss"] / usual - 1) > FIRST_LOSS_TOLERANCE:
                found_here = f"first loss {result['first_loss']:.4f}"
                lines.append(f"{found_here} where others have {usual:.4f}: {result['name']}")
    return lines


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
    probe(out)
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
