"""Tests what is read from the launcher's environment, and real ranks that rely on it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from llm_train.runtime.launch import Launch, find_launch
from llm_train.runtime.srun import Srun
from llm_train.testing.command import refused, run
from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.testing.ranks import launched_as

STEP = launched_as("srun", rank=1, ranks=2, port=29500)


def file_of(folder: Path, **overrides: Any) -> str:
    return str(write(folder / "c.yaml", tiny(folder / "run", **overrides)))


# --- what is read ---------------------------------------------------------------------------------


def test_a_step_of_srun_counts_and_the_job_around_it_does_not() -> None:
    job = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}
    batch_script = {**job, "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert find_launch(batch_script) == Launch()
    shell = {**batch_script, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}
    assert find_launch(shell) == Launch()
    assert find_launch({**job, **STEP}) == Launch(
        kind="srun", ranks=2, local_ranks=2, nodes=1, rank=1, local_rank=1
    )


def test_torchrun_wins_inside_slurm() -> None:
    found = find_launch(launched_as("both", rank=3, ranks=4, port=29500))
    assert found == Launch(kind="torchrun", ranks=4, local_ranks=4, rank=3, local_rank=3)


def test_variables_of_an_operator_are_no_launcher() -> None:
    """Kubernetes operators set these in a pod, where torchrun has yet to start the ranks."""
    pod = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "m", "PET_NNODES": "2"}
    assert find_launch(pod) == Launch(rank=1)


@pytest.mark.parametrize(
    ("tasks", "nodes", "spread", "even"),
    [(8, 2, "4(x2)", True), (3, 2, "2,1", False), (9, 3, "4(x2),1", False), (4, 1, "", True)],
)
def test_uneven_nodes(tasks: int, nodes: int, spread: str, even: bool) -> None:
    numbers = {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": str(nodes)}
    assert find_launch({**numbers, "SLURM_STEP_TASKS_PER_NODE": spread}).even is even


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[07-09,12]", "gpu07"), ("a1,a3", "a1"), ("solo", "solo")]
)
def test_ranks_of_srun_meet_at_the_first_node_of_the_step(
    nodes: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    monkeypatch.setenv("SLURM_STEP_ID", "2")
    met = Srun(Launch(kind="srun"))
    assert (met.main_address, met.main_port) == (first, 19569)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert (met.main_address, met.main_port) == ("10.0.0.1", 29500)


def test_lightning_requeues_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's handler would save inside the signal, and the script requeues."""
    for name, value in launched_as("srun", rank=0, ranks=2, port=29500).items():
        monkeypatch.setenv(name, value)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        plugins=[Srun(find_launch())],
    )
    connector: Any = trainer._signal_connector
    before = signal.getsignal(signal.SIGUSR1)
    connector.register_signal_handlers()
    after = signal.getsignal(signal.SIGUSR1)
    connector.teardown()
    assert before == after


# --- what is refused ------------------------------------------------------------------------------


def test_srun_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "0"}
    for name, value in {**STEP, **spread, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}.items():
        monkeypatch.setenv(name, value)
    outcome = run("check", "-c", file_of(tmp_path))
    assert "128 = 4 ranks x 1 micro-batches x 2 samples x 16 positions" in outcome.out
    assert refused("check", "-c", file_of(tmp_path, trainer__devices=4)) == [
        "trainer.devices=4 but srun started 2 processes here; remove it, or give srun "
        "--ntasks-per-node 4"
    ]
    assert refused("check", "-c", file_of(tmp_path, trainer__num_nodes=3)) == [
        "trainer.num_nodes=3 x 2 processes = 6, but srun started 4; remove it, or give srun "
        "--nodes 3"
    ]
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "3,1")
    assert refused("check", "-c", file_of(tmp_path)) == [
        "srun started 4 processes on 2 nodes, not as many on each; give srun the same "
        "--ntasks-per-node everywhere"
    ]


def test_other_nodes_need_a_launcher_when_a_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)  # runs in this process set it
    file = file_of(tmp_path, trainer__num_nodes=2)
    assert run("check", "-c", file).code == 0
    assert refused("fit", "-c", file) == [
        "trainer.num_nodes=2 but nothing started processes on other nodes; use torchrun or srun "
        "(docs/launching.md)"
    ]


def test_the_launcher_is_not_a_plugin(tmp_path: Path) -> None:
    plugin = {"class_path": "lightning.fabric.plugins.environments.LightningEnvironment"}
    assert refused("check", "-c", file_of(tmp_path, trainer__plugins=[plugin])) == [
        "trainer.plugins=LightningEnvironment has no effect; remove it"
    ]


# --- real ranks -----------------------------------------------------------------------------------


@pytest.mark.distributed
def test_ranks_of_srun_and_of_torchrun_inside_slurm_equal_one_process(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    found = {}
    for name, ranks in {"none": 0, "srun": 2, "both": 2}.items():
        config = tiny(tmp_path / name, model__network__init_args__dropout=0.0)
        arguments = ["fit", "-c", str(write(tmp_path / f"{name}.yaml", config))]
        statuses = fork_server.run(*arguments, ranks=ranks, launcher=name, log=log)
        assert set(statuses) == {0}, log.read_text()
        found[name] = losses(tmp_path / name)
    assert len(found["none"]) == 6
    assert found["srun"] == found["both"]
    assert found["srun"] == pytest.approx(found["none"], rel=1e-6)
    assert log.read_text().count("done: 6 steps") == 3  # one rank speaks for all


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", [pytest.param("fsdp", marks=pytest.mark.slow), "zero2"])
def test_srun_starts_every_strategy(strategy: str, fork_server: ForkServer, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    file = file_of(tmp_path, steps=4, trainer__strategy=strategy)
    statuses = fork_server.run("fit", "-c", file, ranks=2, launcher="srun", log=log)
    assert statuses == [0, 0], log.read_text()
    assert len(losses(tmp_path / "run")) == 4


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("launcher", "number", "sent"),
    [
        ("srun", signal.SIGUSR1, {"victims": [1]}),
        ("srun", signal.SIGTERM, {"victims": [1]}),
        ("both", signal.SIGUSR1, {}),
        ("torchrun", signal.SIGTERM, {"repeat": 2}),
    ],
)
def test_a_signal_ends_all_ranks_with_one_status(
    launcher: str,
    number: signal.Signals,
    sent: dict[str, Any],
    fork_server: ForkServer,
    tmp_path: Path,
) -> None:
    """srun returns the highest status of all tasks; only 128 + SIGUSR1 means: start again.

    torchrun passes on its copy of a signal that the whole job got: that is one wish, not two.
    """
    log = tmp_path / "log.txt"
    file = file_of(tmp_path, steps=200, checkpoint__every="0 steps")
    statuses = fork_server.run(
        "fit",
        "-c",
        file,
        ranks=2,
        launcher=launcher,
        log=log,
        metrics=tmp_path / "run" / "metrics.jsonl",
        step=8,
        signal=number,
        **sent,
    )
    assert statuses == [128 + number] * 2, log.read_text()
    assert log.read_text().count(f"stopped by {number.name} after step") == 1
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert 8 <= int(saved.name.removeprefix("step-")) < 200


@pytest.mark.distributed
def test_notice_before_training_is_not_death(fork_server: ForkServer, tmp_path: Path) -> None:
    """A start longer than the time limit must not look like a run that saved and stopped."""
    log = tmp_path / "log.txt"
    job = fork_server.start("fit", "-c", file_of(tmp_path, steps=4), ranks=0, log=log)
    pid = job.children[0].pid or 0
    job.until(lambda: _ignores(pid, signal.SIGUSR1))
    job.send(signal.SIGUSR1)
    assert job.wait() == [0], log.read_text()
    assert "done: 4 steps" in log.read_text()


def _ignores(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (number - 1) & 1)
