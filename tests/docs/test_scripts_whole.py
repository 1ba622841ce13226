"""Launch scripts start real ranks: a job that is stopped and requeued, and two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from llm_train.testing.configs import tiny, write
from llm_train.testing.ranks import environment
from llm_train.trainer.logger.records import read_lines, read_metrics

SCRIPTS = Path(__file__).parents[2] / "scripts"
pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1800)]

# Starts two tasks as srun would. On the first run it signals them once step 8 is logged, as SLURM
# does before the limit. It returns the highest status.
SRUN = """\
#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0
export SLURM_STEP_NODELIST=localhost SLURM_STEP_ID=0 MASTER_PORT={port}
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks[task]=$!
done
if [[ ${{SLURM_RESTART_COUNT:-0}} == 0 ]]; then
  until grep -q '"step": 8,' {metrics} 2> /dev/null; do sleep 0.01; done
  kill -USR1 "${{tasks[@]}}"
fi
highest=0
for task in 0 1; do
  code=0
  wait "${{tasks[task]}}" || code=$?
  ((code > highest)) && highest=$code
done
exit "$highest"
"""


def losses(folder: Path) -> list[tuple[int, float]]:
    records = read_metrics(folder / "metrics.jsonl")
    return [(r["step"], r["train/loss"]) for r in records if "train/loss" in r]


def variables(folder: Path, **more: str) -> dict[str, str]:
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**environment(), "PATH": path, **more}


def offer(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_job_at_its_limit_is_requeued_and_continues(tmp_path: Path) -> None:
    commands = {}
    for name in ("alone", "job"):
        config = tiny(tmp_path / name, steps=150, checkpoint__every="0 steps")
        file = write(tmp_path / f"{name}.yaml", config)
        commands[name] = ["bash", str(SCRIPTS / "slurm.sbatch"), "fit", "-c", str(file)]
    metrics = tmp_path / "job" / "metrics.jsonl"
    offer(tmp_path, "srun", SRUN.format(port=find_free_network_port(), metrics=metrics))
    offer(tmp_path, "scontrol", f'#!/usr/bin/env bash\necho "$*" >> {tmp_path}/requeued\n')
    codes = []
    for name, restarts in (("alone", 7), ("job", 0), ("job", 1)):
        given = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": str(restarts)}
        done = subprocess.run(
            commands[name], env=variables(tmp_path, **given), timeout=600, check=False
        )
        codes.append(done.returncode)
    assert codes == [0, 138, 0]
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    events: list[Any] = [record.get("event") for record in read_lines(metrics)]
    assert events.count("start") == events.count("resume") == 1
    assert losses(tmp_path / "job") == losses(tmp_path / "alone")


def test_two_nodes(tmp_path: Path) -> None:
    """Two agents of torchrun run on one machine as they would on two."""
    file = write(tmp_path / "c.yaml", tiny(tmp_path / "run"))
    given = {"NODES": "2", "PROCESSES": "1", "HOST": f"127.0.0.1:{find_free_network_port()}"}
    agents = [
        subprocess.Popen(
            ["bash", str(SCRIPTS / "torchrun.sh"), "fit", "-c", str(file)],
            env=variables(tmp_path, **given),
        )
        for _ in range(2)
    ]
    assert [agent.wait(timeout=600) for agent in agents] == [0, 0]
    assert len(losses(tmp_path / "run")) == 6
