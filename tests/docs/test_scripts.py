"""Launch scripts are linted and run with stand-ins for programs that only a cluster has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import parse_args

from llm_train.testing.command import run

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
SHELL = ["torchrun.sh", "slurm.sbatch", "gpu_measure.sh", "gpu_wheels.sh", "interpreters.sh"]

# A stand-in writes its name and arguments, one line per call, and then does as it is told.
STAND_IN = """\
#!/usr/bin/env bash
printf '%s\\n' "{name} $*" >> "{calls}"
{does}
"""


@pytest.mark.parametrize("name", SHELL)
def test_shell_is_sound(name: str) -> None:
    """Uses shellcheck if the machine has it, and otherwise checks only the syntax."""
    linter = ["shellcheck"] if shutil.which("shellcheck") else ["bash", "-n"]
    done = subprocess.run(
        [*linter, str(SCRIPTS / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Cluster:
    """A folder of stand-ins, which comes first on PATH, and a record of their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"

    def offers(self, name: str, does: str) -> None:
        path = self.folder / name
        path.write_text(STAND_IN.format(name=name, calls=self.calls, does=does))
        path.chmod(0o755)

    def runs(self, script: str, *arguments: str, **variables: str) -> tuple[int, list[str], str]:
        """Returns the exit status, the calls in their order, and standard error."""
        done = subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            env={"PATH": f"{self.folder}:{os.environ['PATH']}", **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return done.returncode, calls, done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_python_that_is_absent_is_passed_over(cluster: Cluster, tmp_path: Path) -> None:
    cluster.offers("python3.9", "exit 127")  # as a shim of pyenv does
    code, calls, err = cluster.runs("interpreters.sh", "3.9", HOME=str(tmp_path))
    assert (code, len(calls), err) == (0, 1, "")
    assert not (ROOT / ".venv-3.9").exists()


# --- torchrun -------------------------------------------------------------------------------------


def test_one_node(cluster: Cluster) -> None:
    cluster.offers("torchrun", 'echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" >&2; exit 7')
    code, calls, err = cluster.runs("torchrun.sh", "fit", "-c", "a b.yaml", PROCESSES="3")
    assert (code, err) == (7, "300\n")
    assert calls == ["torchrun --standalone --nproc-per-node 3 -m llm_train fit -c a b.yaml"]


def test_as_many_processes_as_devices(cluster: Cluster) -> None:
    cluster.offers("torchrun", "exit 0")
    cluster.offers("python", "echo 8")
    code, calls, _ = cluster.runs("torchrun.sh", "fit")
    assert code == 0
    assert calls[-1].startswith("torchrun --standalone --nproc-per-node 8 ")


def test_several_nodes(cluster: Cluster) -> None:
    cluster.offers("torchrun", "exit 0")
    given = {"PROCESSES": "8", "NODES": "2", "HOST": "node1:29500"}
    code, calls, _ = cluster.runs("torchrun.sh", "fit", "-c", "c.yaml", **given)
    assert code == 0
    (call,) = calls
    parsed = parse_args(call.split()[1:])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.standalone) == ("2", "8", False)
    assert (parsed.rdzv_backend, parsed.rdzv_endpoint) == ("c10d", "node1:29500")
    assert parsed.training_script == "llm_train"
    assert parsed.training_script_args == ["fit", "-c", "c.yaml"]


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        ([], {}, "usage: "),
        (["fit"], {"NODES": "2"}, "NODES=2 needs HOST=ADDRESS:PORT"),
        (["fit"], {"NODES": "2", "HOST": "node1"}, "NODES=2 needs HOST=ADDRESS:PORT"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str], variables: dict[str, str], says: str, cluster: Cluster
) -> None:
    cluster.offers("torchrun", "exit 0")
    code, calls, err = cluster.runs("torchrun.sh", *arguments, **variables)
    assert (code, calls) == (2, [])
    assert err.startswith(says)


# --- SLURM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [0, 1, 2, 137, 138, 139, 143])
def test_only_a_run_that_saved_and_stopped_for_its_limit_is_requeued(
    ended: int, cluster: Cluster
) -> None:
    cluster.offers("srun", f"exit {ended}")
    cluster.offers("scontrol", "exit 0")
    code, calls, _ = cluster.runs("slurm.sbatch", "fit", "-c", "c.yaml", SLURM_JOB_ID="4711")
    assert code == ended
    step = "srun --kill-on-bad-exit=0 --wait=45 python -m llm_train fit -c c.yaml"
    assert calls == [step, *(["scontrol requeue 4711"] if ended == 138 else [])]


def test_a_requeued_job_continues_until_it_is_done(cluster: Cluster) -> None:
    """The job runs as under SLURM: it is stopped twice at its limit, then it is done."""
    cluster.offers("srun", '[[ "$(grep -c ^srun "$0".calls)" == 3 ]] || exit 138')
    (cluster.folder / "srun.calls").symlink_to(cluster.calls)
    cluster.offers("scontrol", "exit 0")
    codes = []
    for restarts in range(3):
        given = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": str(restarts)}
        code, calls, _ = cluster.runs("slurm.sbatch", "fit", "-c", "c.yaml", **given)
        codes.append(code)
    assert codes == [138, 138, 0]
    assert calls.count("scontrol requeue 4711") == 2
    steps = [call for call in calls if call.startswith("srun")]
    assert ["--resume auto" in step for step in steps] == [False, True, True]


def test_requeueing_that_fails_is_not_hidden(cluster: Cluster) -> None:
    cluster.offers("srun", "exit 138")
    cluster.offers("scontrol", "exit 1")
    code, calls, _ = cluster.runs("slurm.sbatch", "fit", SLURM_JOB_ID="4711")
    assert code == 1
    assert len(calls) == 2


def test_other_verbs_take_no_resume(cluster: Cluster) -> None:
    cluster.offers("srun", 'echo "$SRUN_CPUS_PER_TASK" >&2')
    given = {"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "1", "SLURM_CPUS_PER_TASK": "12"}
    code, calls, err = cluster.runs("slurm.sbatch", "prepare", "-c", "c.yaml", **given)
    assert (code, err) == (0, "12\n")
    assert calls[0].endswith("-m llm_train prepare -c c.yaml")


def test_slurm_is_asked_for_what_the_script_relies_on() -> None:
    text = (SCRIPTS / "slurm.sbatch").read_text(encoding="utf-8")
    asked = re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE)
    # The signal goes to the steps, not to the batch script alone (B:), and a requeue keeps the log.
    assert {"--signal=USR1@300", "--requeue", "--open-mode=append"} <= set(asked)


# --- the page -------------------------------------------------------------------------------------


def test_the_commands_of_the_page(cluster: Cluster) -> None:
    """Each command is one line, and a script in it runs with stand-ins, as written."""
    page = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", page, re.S) for line in block.splitlines()
    ]
    assert len(lines) == 7
    for name in ("torchrun", "kubectl", "scontrol"):
        cluster.offers(name, "exit 0")
    cluster.offers("python", "echo 8")
    # The options of sbatch and srun come before the program, as pairs of words.
    skip = 'while [[ $1 == --* ]]; do if [[ $1 == *=* ]]; then shift; else shift 2; fi; done; "$@"'
    for name in ("sbatch", "srun"):
        cluster.offers(name, skip)
    for line in lines:
        cluster.calls.unlink(missing_ok=True)
        path = {"PATH": f"{cluster.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
        subprocess.run(["bash", "-c", line], env=path, cwd=ROOT, check=True, timeout=60)
        started = cluster.calls.read_text().splitlines()[-1]
        for file in re.findall(r"\S+\.yaml", started):
            assert (ROOT / file).exists(), file
        assert started.startswith("kubectl apply") or "-m llm_train fit -c" in started


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.fixture
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((SCRIPTS / "pytorchjob.yaml").read_text())
    return loaded


def test_the_manifest_is_a_pytorchjob(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert job["spec"]["runPolicy"]["backoffLimit"] > 0  # else it would restart for ever
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas.keys() == {"Master", "Worker"}
    assert replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        assert replica["restartPolicy"] == "OnFailure"
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"
        assert container["ports"][0]["name"] == "pytorchjob-port"
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert mounts["shm"] == "/dev/shm"
        variables = {one["name"]: one["value"] for one in container["env"]}
        assert all(isinstance(value, str) for value in variables.values())
        grace = int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        assert pod["terminationGracePeriodSeconds"] > grace


def test_the_command_of_the_manifest_runs(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun reads the command whatever the operator sets, and check accepts the ranks."""
    operator = {"NNODES": "9", "NPROC_PER_NODE": "auto", "NODE_RANK": "1", "MASTER_ADDR": "x"}
    for name, value in operator.items():
        monkeypatch.setenv(f"PET_{name}", value)
    replicas = job["spec"]["pytorchReplicaSpecs"]
    (container,) = replicas["Master"]["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    assert program == "torchrun"
    assert "--rdzv-endpoint=$(MASTER_ADDR):$(MASTER_PORT)" in arguments
    parsed = parse_args(arguments)
    nodes, gpus = int(parsed.nnodes), int(parsed.nproc_per_node)
    assert nodes == sum(replica["replicas"] for replica in replicas.values())
    assert gpus == container["resources"]["limits"]["nvidia.com/gpu"]
    assert (parsed.module, parsed.training_script) == (True, "llm_train")

    verb, *options = parsed.training_script_args
    assert verb == "fit"
    options.remove("--resume=auto")  # check has no use for it
    rank = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": nodes * gpus, "LOCAL_WORLD_SIZE": gpus}
    for name, number in rank.items():
        monkeypatch.setenv(name, str(number))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "llm-train")
    monkeypatch.chdir(ROOT)
    outcome = run("check", *options, "--trainer.accelerator=gpu")
    assert (outcome.code, outcome.err) == (1, "")  # sound, but nothing is prepared here
    assert f"= {nodes * gpus} ranks x " in outcome.out


def test_every_place_to_change_is_marked() -> None:
    text = (SCRIPTS / "pytorchjob.yaml").read_text(encoding="utf-8")
    marked = [line for line in text.splitlines() if "# CHANGE" in line]
    for key in ("name: llm-train", "image:", "--nnodes", "--nproc", "configs/", "limits:", "claim"):
        assert any(key in line for line in marked), key
