"""A rank that is lost is named by the others, and the job ends by itself."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.testing.ranks import environment
from tests.chaos.trials import trials

MISBEHAVE = Path(__file__).with_name("misbehave.py")
SECONDS = 5.0  # of ``watch``
TEXTS = {
    "raise": "ValueError: on purpose",
    "refuse": "data.source is broken; mend it",
    "exit": "has ended without a word",
    "kill": "has ended without a word",
    "stop": "has given no sign of life for",
    "hang": "has stood still for",
    "mismatch": "has stood still for",
    "group": "has stood still for",
}
# Among more ranks gloo mixes up the bytes of two collectives of one group, which NCCL does not.
CASES = [
    (strategy, ranks, how)
    for strategy, ranks, how in product(["ddp", "fsdp", "zero2"], [2, 4], TEXTS)
    if how != "mismatch" or ranks == 2
]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("guilty", "how"),
    [
        *((1, how) for how in ("raise", "exit", "hang", "stop")),
        *(pytest.param(1, how, marks=pytest.mark.slow) for how in ("refuse", "kill", "mismatch")),
        *(pytest.param(0, how, marks=pytest.mark.slow) for how in ("raise", "exit", "hang")),
    ],
)
def test_a_lost_rank_ends_the_job(
    guilty: int, how: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    require_named(guilty, how, fork_server, tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize("seed", trials("lost-rank", 2 * len(CASES)))
def test_a_lost_rank_of_several(seed: int, fork_server: ForkServer, tmp_path: Path) -> None:
    strategy, ranks, how = CASES[seed % len(CASES)]
    guilty = random.Random(f"lost-rank-{seed}").randrange(ranks)
    require_named(guilty, how, fork_server, tmp_path, ranks=ranks, strategy=strategy)


def require_named(
    guilty: int,
    how: str,
    fork_server: ForkServer,
    tmp_path: Path,
    *,
    ranks: int = 2,
    strategy: str = "ddp",
) -> None:
    options: dict[str, Any] = {"watch__still_seconds": SECONDS, "watch__silent_seconds": SECONDS}
    options |= {"trainer__strategy": strategy, "batch__per_device": 4 // ranks}
    path, log = write(tmp_path / "c.yaml", tiny(tmp_path / "run", **options)), tmp_path / "log.txt"
    statuses = fork_server.run(
        *(str(guilty), how, "fit", "-c", str(path)),
        ranks=ranks,
        log=log,
        script=MISBEHAVE,
        environment={"TORCHELASTIC_ERROR_FILE": tmp_path / "error.json"},
        file=tmp_path / "run" / "metrics.jsonl",
        repeat=0,  # no signal
    )
    text = log.read_text()
    lines = [line for line in text.splitlines() if line.startswith("llm-train: error: ")]
    if (guilty, how) == (0, "refuse"):  # a launcher ends the others, who often would say the same
        assert statuses[0] == 2, text
        assert text_of(guilty, how) in lines[0]
        return
    first = int(guilty == 0)  # of the others; it speaks for all of them
    assert statuses[first] == 1, text
    assert f"rank {first} ends because rank {guilty} (" in lines[-1]
    assert text_of(guilty, how) in lines[-1]
    if how in ("raise", "refuse", "hang", "mismatch", "group"):  # it can speak for itself
        assert len(lines) == 2
        assert text_of(guilty, how) in lines[0]
    if how in ("hang", "mismatch", "group"):
        assert 'misbehave.py", line' in text  # its traceback
        stacks = [path.read_text() for path in (tmp_path / "run" / "stacks").glob("rank-*.txt")]
        assert len(stacks) == ranks
        assert any("misbehave.py" in stack for stack in stacks)
    assert (
        text_of(guilty, how)
        in json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    )
    assert fork_server.seconds < 2 * SECONDS + 5


def text_of(guilty: int, how: str) -> str:
    """What is said of a rank; without torchrun rank 0 serves the store at which they meet."""
    return "has not answered for" if (guilty, how) == (0, "stop") else TEXTS[how]


@pytest.mark.distributed
def test_a_rank_that_alone_refuses_its_settings_says_so_soon(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    path, log = write(tmp_path / "c.yaml", tiny(tmp_path / "run")), tmp_path / "log.txt"
    arguments = ("1", "parse", "fit", "-c", str(path))
    assert fork_server.run(*arguments, ranks=2, log=log, script=MISBEHAVE)[1] == 2
    assert "llm-train: error: rank 1: seed=x is not a whole number" in log.read_text()
    assert fork_server.seconds < 30


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_torchrun_starts_again_and_the_run_continues(how: str, tmp_path: Path) -> None:
    found = []
    for name, restarts in (("whole", "0"), ("lost", "1")):
        path = write(tmp_path / f"{name}.yaml", tiny(tmp_path / name))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        rank = "1" if name == "lost" else "-1"
        arguments = [str(MISBEHAVE), rank, how, "fit", "-c", str(path), "--resume", "auto"]
        done = subprocess.run(
            [sys.executable, *launcher, "--max-restarts", restarts, *arguments],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("rank 0 ends because rank 1" in done.stderr) == (name == "lost")
        found.append(losses(tmp_path / name))
    assert found[0] == found[1]
