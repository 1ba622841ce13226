"""The matrix of faults: which tests make up a row, and what their results add up to.

``make chaos`` runs the tests that are named here and writes a line for each; of those lines this
makes the table of docs/reliability.md::

    python -m benchmarks.faults [--write] benchmarks/results/chaos-*.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.judge import read_rows

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
NOT_RUN = "not run yet"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of fault.

    Attributes:
        fault: what is done to a run.
        must: what it must show.
        tests: files of tests; every test in them is a trial.
        counts: what a trial counts with ``record_property``: its name -> how a figure says it. The
            first is the number of faults; "" counts the trials themselves.
        wanted: how many faults the full set has; 0 where it is what the tests hold.
    """

    fault: str
    must: str
    tests: tuple[str, ...]
    counts: dict[str, str]
    wanted: int = 0


ROWS = [
    Row(
        fault="SIGKILL of the whole job at random times and inside saves; single, DDP, FSDP, ZeRO",
        must="started again by the same command: weights, optimizer, random states, position and "
        "losses bitwise those of the unbroken run",
        tests=("tests/chaos/test_kill.py",),
        counts={
            "kills": "kills",
            "inside_save": "of them inside a save",
            "asynchronous": "of them of runs that save alongside training",
        },
        wanted=1000,
    ),
    Row(
        fault="SIGKILL while checkpoints are uploaded to a URL; the local disk is lost",
        must="the newest complete checkpoint of both homes is taken; bitwise the unbroken run",
        tests=(
            "tests/chaos/test_remote.py",
            "tests/checkpoint/test_remote.py",
            "tests/checkpoint/test_remote_s3.py",
        ),
        counts={"": "trials", "uploads": "kills inside an upload", "lost": "lost disks"},
    ),
    Row(
        fault="every call that changes the disk as a crash point: save, replace, delete, load",
        must="a complete checkpoint at every instant, nothing torn",
        tests=("tests/checkpoint/test_crash_points.py", "tests/checkpoint/test_store_killed.py"),
        counts={"": "scenarios, each killed at every call"},
    ),
    Row(
        fault="no space, I/O error, quota, permission, short write",
        must="the checkpoint before is intact, one line, space given back",
        tests=("tests/checkpoint/test_full_disk.py", "tests/checkpoint/test_disk_errors.py"),
        counts={"": "trials"},
    ),
    Row(
        fault="flipped bits, truncated, dropped and swapped files of checkpoints and data",
        must="found before use, the older checkpoint taken; no false alarm in clean loads",
        tests=("tests/chaos/test_damage.py", "tests/data/test_damage.py"),
        counts={
            "alterations": "alterations of checkpoints",
            "harmless": "of them to a space of the manifest",
            "clean_loads": "clean loads",
        },
        wanted=10_000,
    ),
    Row(
        fault="signals to every set of 2 and 4 ranks in every phase",
        must="no hang; all ranks end alike within a step, a save and 5 s",
        tests=("tests/chaos/test_signals.py", "tests/trainer/callbacks/test_signals.py"),
        counts={"": "trials"},
        wanted=150,
    ),
    Row(
        fault="hang, stopped rank, mismatched collective, exception, exit of one of 2 or 4 ranks, "
        "DDP, FSDP, ZeRO; SIGKILL of a rank under torchrun",
        must="found in time, the right rank and traceback first, restarted",
        tests=("tests/chaos/test_torchrun.py", "tests/trainer/callbacks/test_lost_ranks.py"),
        counts={"": "trials", "rank_kills": "kills of a rank under torchrun"},
    ),
    Row(
        fault="NaN and infinity on a rank, spikes, a flipped bit in a replica",
        must="the same decision on all ranks; nothing that is not finite in any checkpoint",
        tests=(
            "tests/chaos/test_numbers.py",
            "tests/checkpoint/test_not_finite.py",
            "tests/trainer/callbacks/test_guard.py",
            "tests/trainer/callbacks/test_spikes.py",
            "tests/trainer/strategy/test_replicas.py",
        ),
        counts={"": "trials", "checkpoints": "checkpoints looked through"},
    ),
    Row(
        fault="links, two runs in a folder, stale leases, a foreign host",
        must="nothing lost, nothing silent",
        tests=(
            "tests/chaos/test_folder.py",
            "tests/resume/test_folder.py",
            "tests/runtime/test_lease.py",
        ),
        counts={"": "trials"},
    ),
    Row(
        fault="W&B unreachable at the start, in the middle, at the end",
        must="no row lost, at most 5 s",
        tests=(
            "tests/trainer/logger/test_wandb_outages.py",
            "tests/trainer/logger/test_wandb_logger.py",
        ),
        counts={"": "trials"},
    ),
    Row(
        fault="payloads: pickles in every file kind, YAML tags, class paths and look-alikes, names "
        "with `..`, object arrays, claims of size, bombs, secrets",
        must="refused or absent, in one line, in bounded time and memory",
        tests=(
            "tests/chaos/test_payloads.py",
            "tests/chaos/test_payload_settings.py",
            "tests/runtime/test_yaml12.py",
            "tests/cli/test_secret_keys.py",
            "tests/data/test_shards.py",
            "tests/checkpoint/test_store.py",
        ),
        counts={"": "trials"},
    ),
    Row(
        fault="half an hour with a random fault every 30 s",
        must="finishes alone, effective time at least 0.85, the ledger explains 99.5 %",
        tests=("tests/chaos/test_half_hour.py",),
        counts={"faults": "faults", "effective": "effective time", "explained": "explained"},
    ),
]
TESTS = tuple(test for row in ROWS for test in row.tests)


def figure(row: Row, results: Iterable[dict[str, Any]]) -> str:
    """What the trials of a row add up to, the last result of each."""
    mine = [
        r for r in results if r["case"].split("::")[0] in row.tests and "skip" not in r["outcome"]
    ]
    if not mine:
        return NOT_RUN
    failed = [r["case"] for r in mine if r["outcome"] != "passed"]
    said = []
    for name, words in row.counts.items():
        number = sum(r.get(name, 0) if name else 1 for r in mine)
        of = f" (of {row.wanted:,} in the full set)" if not said and number < row.wanted else ""
        said.append(f"{number:,} {words}{of}")
    good = f"{len(mine) - len(failed)} of {len(mine)} trials passed"
    return f"{good}: {', '.join(said)}" if row.counts != {"": "trials"} or row.wanted else good


def table(results: Iterable[dict[str, Any]]) -> str:
    """The matrix in Markdown."""
    last = list({r["case"]: r for r in results if r["study"] == "tests"}.values())
    lines = ["| fault | must show | found |", "|---|---|---|"]
    lines += [f"| {row.fault} | {row.must} | {figure(row, last)} |" for row in ROWS]
    return "\n".join(lines)


def main() -> int:
    """Prints the table, or writes it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("results", type=Path, nargs="+", help="lines of make chaos, oldest first")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    flags = parser.parse_args()
    made = table(row for file in flags.results for row in read_rows(file))
    if flags.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}")
    else:
        print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
