"""Runs all measurements on one GPU, in one command: python -m benchmarks.gpu.

Each study is a process with a time limit of its own. The most important study comes first, and
every row is written as soon as it is known. Studies that no longer fit into ``--minutes`` are
recorded as skipped. ``--rehearse`` sends tiny twins of all shapes through the same code on a CPU;
the numbers of a rehearsal mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.draw import picture, read, summary
from benchmarks.judge import WHOLE_STUDY
from benchmarks.studies.environment import ROOT, described


@dataclass(frozen=True, kw_only=True)
class Study:
    """A module of ``benchmarks.studies``.

    Attributes:
        name: name of the module, also used in rows.
        least: minutes below which it is not worth starting.
        most: minutes after which it is ended.
    """

    name: str
    least: float
    most: float


STUDIES = [
    Study(name="numerics", least=1, most=9),
    Study(name="peers", least=2, most=9),
    Study(name="modes", least=1.7, most=4),
    Study(name="fractions", least=0.7, most=2),
    Study(name="shakespeare", least=0.7, most=4),
    Study(name="throughput", least=2, most=16),
    Study(name="memory", least=1.5, most=5),
    Study(name="startup", least=2, most=6),
    Study(name="float8", least=3, most=12),
    Study(name="largest", least=3, most=12),
    Study(name="loss", least=2, most=10),
    Study(name="ablations", least=3, most=25),
]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny twins on a CPU")
    parser.add_argument("--only", default="", help="studies, with commas between")
    parser.add_argument("--shapes", default="", help="shapes of the throughput study")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for everything")
    parser.add_argument("--thorough", action="store_true", help="try every micro-batch")
    parser.add_argument("--nanogpt", default="", help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--shakespeare", default="", help="karpathy/char-rnn's input.txt")
    parser.add_argument("--out", type=Path, help="rows are appended to it")
    arguments = parser.parse_args()
    names = [study.name for study in STUDIES]
    wanted = arguments.only.split(",") if arguments.only else names
    if unknown := set(wanted) - set(names):
        parser.error(f"no study is called {', '.join(sorted(unknown))}; there are {names}")
    arguments.only = wanted
    for key in ("nanogpt", "shakespeare"):
        if (path := getattr(arguments, key)) and not Path(path).exists():
            parser.error(f"--{key}={path} does not exist")
    return arguments


def record(out: Path, study: str, found: dict[str, Any], **details: str) -> None:
    """Writes a row about a whole study."""
    row = {"study": study, "case": WHOLE_STUDY, **details, "versions": found}
    with open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{study}: {details}", flush=True)


def run(study: Study, settings: dict[str, Any], out: Path, minutes: float) -> None:
    """Runs one study, and ends it and all its processes when its time is over."""
    command = [sys.executable, "-m", f"benchmarks.studies.{study.name}"]
    settings = {**settings, "study": study.name, "deadline": time.time() + 60 * minutes}
    process = subprocess.Popen([*command, json.dumps(settings)], cwd=ROOT, start_new_session=True)
    trouble = ""
    try:
        if code := process.wait(timeout=60 * minutes):
            trouble = f"the process ended with {code}"
    except subprocess.TimeoutExpired:
        trouble = f"ended after {minutes:.1f} minutes"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # peers that outlived the study
        process.wait()
    if trouble:
        record(out, study.name, settings["versions"], error=trouble)


def main() -> None:
    arguments = parse()
    found = described()
    if not arguments.rehearse and found["memory_gib"] is None:
        sys.exit("there is no CUDA device; --rehearse runs tiny twins on the CPU")
    found["rehearsal"] = arguments.rehearse
    begin = time.time()
    with tempfile.TemporaryDirectory(prefix="benchmark", ignore_cleanup_errors=True) as directory:
        results = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
        if arguments.rehearse:
            results = Path(directory)
        out = (arguments.out or results / f"gpu-{date.today()}.jsonl").resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        settings = {
            "out": str(out),
            "directory": directory,
            "rehearse": arguments.rehearse,
            "nanogpt": arguments.nanogpt and str(Path(arguments.nanogpt).resolve()),
            "shakespeare": arguments.shakespeare and str(Path(arguments.shakespeare).resolve()),
            "thorough": arguments.thorough,
            "shapes": [name for name in arguments.shapes.split(",") if name],
            "versions": found,
        }
        for study in STUDIES:
            if study.name not in arguments.only:
                continue
            left = arguments.minutes - (time.time() - begin) / 60
            if left < study.least:
                record(out, study.name, found, skipped="time")
                continue
            run(study, settings, out, min(study.most, left))
        rows = read([out])
        text = summary(rows)
        out.with_suffix(".md").write_text(summary(rows, limit=1_000_000), "utf-8")
        try:
            picture(rows, out.with_suffix(".png"))
        except ImportError:
            print("matplotlib is not installed: no picture")
        print(text)


if __name__ == "__main__":
    main()
