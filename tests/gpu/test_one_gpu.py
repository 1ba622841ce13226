"""One CUDA device: mixed precision, compilation, every strategy with one rank, kill and resume."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.model.loss import CausalLM
from llm_train.model.network import Transformer, initialise, materialise
from llm_train.model.network.shadow import ShadowWeights
from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.ranks import command, environment, llm_train
from llm_train.trainer.logger.records import read_lines, read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 30


def config(run_dir: Path, **overrides: Any) -> dict[str, Any]:
    settings = {
        "trainer__accelerator": "gpu",
        "trainer__devices": 1,
        "trainer__precision": "bf16-mixed",
        "model__network__init_args__width": 128,
        "model__network__init_args__dropout": 0.0,
        "checkpoint__every": "5 steps",
    }
    return tiny(run_dir, steps=STEPS, **{**settings, **overrides})


CASES = [(s, c) for s in ("single", "ddp", "fsdp", "zero2") for c in ("none", "blocks")]


@pytest.mark.parametrize(
    ("strategy", "compiled"), [*CASES, ("single", "network"), ("single", "graphs")]
)
def test_every_strategy_learns_and_resumes(strategy: str, compiled: str, tmp_path: Path) -> None:
    """A run is killed in the middle with SIGKILL, continued, and compared with an unbroken run."""
    ranks = 0 if strategy == "single" else 1
    paths = {}
    for name in ("alone", "killed"):
        settings: dict[str, Any] = {"trainer__strategy": strategy, "model__compile": compiled}
        if compiled == "graphs":  # one micro-batch per step
            settings["batch__per_device"] = 8
        paths[name] = str(write(tmp_path / f"{name}.yaml", config(tmp_path / name, **settings)))
    llm_train("fit", "-c", paths["alone"], ranks=ranks)
    kill_at(12, tmp_path / "killed", command("fit", "-c", paths["killed"], ranks=ranks))
    llm_train("fit", "-c", paths["killed"], "--resume", "auto", ranks=ranks)
    alone, killed = losses(tmp_path / "alone"), losses(tmp_path / "killed")
    assert list(killed) == list(range(1, STEPS + 1))
    assert killed == pytest.approx(alone, rel=1e-3)
    assert alone[STEPS] < alone[1] - 0.1


def kill_at(step: int, run_dir: Path, arguments: list[str]) -> None:
    process = subprocess.Popen(
        arguments,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and max((r["step"] for r in read_lines(metrics)), default=0) >= step:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    "strategy",
    [
        {"class_path": "FSDP", "init_args": {"offload": True}},
        {"class_path": "ZeRO", "init_args": {"stage": 2, "offload_optimizer": "cpu"}},
    ],
    ids=["fsdp", "zero2"],
)
def test_offloading_changes_where_state_is_and_nothing_else(
    strategy: dict[str, Any], tmp_path: Path
) -> None:
    plain = {**strategy, "init_args": {"stage": 2} if strategy["class_path"] == "ZeRO" else {}}
    found = []
    for name, chosen in (("plain", plain), ("offloaded", strategy)):
        settings = config(tmp_path / name, trainer__strategy=chosen)
        llm_train("fit", "-c", str(write(tmp_path / f"{name}.yaml", settings)), ranks=1)
        found.append(losses(tmp_path / name))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_weights_do_not_depend_on_the_device() -> None:
    shape = Transformer(vocab_size=101, layers=2, width=32, heads=2, max_sequence=16)
    networks = []
    for device in ("cpu", "cuda"):
        with torch.device("meta"):
            network = shape.build()
        materialise(network, device)
        initialise(network, seed=3)
        networks.append(network)
    for (name, first), second in zip(
        networks[0].named_parameters(), networks[1].parameters(), strict=True
    ):
        assert torch.equal(first, second.cpu()), name


def test_mfu_and_peak_memory_are_reported_where_the_peak_is_known(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", config(tmp_path / "run"))
    llm_train("fit", "-c", str(path))
    last = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in r][-1]
    assert last["memory/peak_gib"] > 0
    if "H200" in torch.cuda.get_device_name(0):
        assert 0 < last["throughput/mfu"] < 1


def test_no_synchronisation_between_log_points(tmp_path: Path) -> None:
    """torch's own detector raises at every call that waits for the device between log points."""
    settings = {"trainer__log_every_n_steps": 10, "checkpoint__every": "0 steps"}
    path = write(tmp_path / "c.yaml", config(tmp_path / "run", **settings))
    script = Path(__file__).with_name("forbid_synchronisation.py")
    arguments = [*command()[:1], str(script), "fit", "-c", str(path)]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs FP8 units",
)
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_float8_learns_as_bf16_does(recipe: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    found = {}
    for name in ("none", recipe):
        settings = {"model__float8": name, "model__compile": "blocks"}
        path = write(tmp_path / f"{name}.yaml", config(tmp_path / name, **settings))
        llm_train("fit", "-c", str(path))
        found[name] = losses(tmp_path / name)
    assert found[recipe][STEPS] == pytest.approx(found["none"][STEPS], rel=0.03)


def test_copies_of_weights_give_what_autocast_gives() -> None:
    shape = Transformer(vocab_size=101, layers=2, width=64, heads=2, max_sequence=16)
    tokens = torch.randint(101, (4, 17), device="cuda")
    found = []
    for copied in (False, True):
        network = shape.build().cuda()
        initialise(network, seed=3)
        if copied:
            ShadowWeights(network, torch.bfloat16)
        with torch.autocast("cuda", torch.bfloat16):
            sums = network(tokens[:, :-1], partial(CausalLM(), targets=tokens[:, 1:]))
        sums.objective.backward()
        found.append((sums.nats, [p.grad for p in network.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)
