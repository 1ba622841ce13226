"""A signal to any rank, in any phase, ends all ranks together, at once and without a loss."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines

SLOW = Path(__file__).with_name("slow_phases.py")
STEPS = 8
SLOWEST = 1.0  # second in which a step, or a save, can end


def config(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    made = tiny(
        folder / "run",
        steps=STEPS,
        checkpoint__every="2 steps",
        validate_every="4 steps",
        trainer__log_every_n_steps=500,
        data__source__init_args__held_out_length=1000,
    )
    return str(write(folder / "c.yaml", made))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("phase", "victims", "number"),
    [
        ("start-up", [1], signal.SIGTERM),
        ("step", [0], signal.SIGUSR1),
        ("validation", [1], signal.SIGINT),
        ("save", [0, 1], signal.SIGTERM),
        ("end", [1], signal.SIGTERM),
    ],
)
def test_a_signal_ends_the_phase(
    phase: str, victims: list[int], number: signal.Signals, fork_server: ForkServer, tmp_path: Path
) -> None:
    path, log = config(tmp_path), tmp_path / "log.txt"
    arguments = [phase, str(tmp_path / "now"), "fit", "-c", path]
    statuses = fork_server.run(
        *arguments,
        ranks=2,
        log=log,
        script=SLOW,
        file=tmp_path / "now",
        signal=number,
        victims=victims,
    )
    # Nothing is left to end at the end.
    assert set(statuses) == {0 if phase == "end" else 128 + number}, log.read_text()
    assert fork_server.seconds < SLOWEST + 5


@pytest.mark.distributed
def test_a_validation_that_was_broken_off_is_repeated(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    log, found = tmp_path / "log.txt", []
    for name in ("whole", "cut"):
        path = config(tmp_path / name)
        if name == "cut":
            now = tmp_path / "now"
            arguments = ["validation", str(now), "fit", "-c", path]
            signalled = {"script": SLOW, "file": now, "signal": signal.SIGTERM, "victims": [1]}
            assert fork_server.run(*arguments, ranks=2, log=log, **signalled) == [143, 143]
            assert (tmp_path / name / "run" / "checkpoints" / "step-00000004").is_dir()
        arguments = ["fit", "-c", path, "--resume", "auto"]
        assert fork_server.run(*arguments, ranks=2, log=log) == [0, 0], log.read_text()
        records = read_lines(tmp_path / name / "run" / "metrics.jsonl")
        found.append([(r["step"], r["val/loss"]) for r in records if "val/loss" in r])
        found.append(losses(tmp_path / name / "run"))
    assert [step for step, _ in found[0]] == [4, 8]
    assert found[2:] == found[:2]
