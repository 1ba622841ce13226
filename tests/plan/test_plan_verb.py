"""Tests what the verb prints, writes and refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from llm_train.cli import load_settings
from llm_train.model.optimizer import AdamW, TorchOptimizer
from llm_train.plan.cost_model import CostModel
from llm_train.plan.draft import configured, on_devices, plan
from llm_train.plan.speed import LINK_EFFICIENCY, transfer_seconds
from llm_train.runtime.devices import device_called
from llm_train.settings import Settings
from llm_train.testing import configs
from llm_train.testing.command import refused, run
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.strategy import DDP, FSDP, LocalSGD, Strategy
from llm_train.trainer.strategy.cost import Transfer, Weight, Workload

ROOT = Path(__file__).parents[2]
QUICK = ("-c", str(ROOT / "configs/quickstart.yaml"))


def test_a_plan_of_the_quickstart(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = run("plan", *QUICK, "--devices", "2", "--gpu", "l4", "--json", str(file))
    assert done.code == 0, done.err
    for title in ("memory of one rank", "traffic of one step", "fastest that fits", "assumptions"):
        assert f"\n{title}\n" in done.out
    values = json.loads(file.read_text())
    best, own = values["fastest"][0], values["configured"]
    assert best["seconds"]["step"] <= own["seconds"]["step"]
    assert values["simulated"]["parameters"] == own["bytes"]["parameters"] == 4 * 1_312_128
    assert "MuonAdamW" in values["refused"]["ZeRO 1"]
    for found in values["fastest"]:
        data_ranks = found["mesh"]["replicas"] * found["mesh"]["shards"]
        assert found["micro_batch"] * found["micro_batches"] * data_ranks == 8


def test_a_users_strategy_and_local_sgd_are_planned_as_they_are(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    on_path = {"PYTHONPATH": str(ROOT / "docs/examples")}
    small = ["-c", str(configs.write(tmp_path / "tiny.yaml", configs.tiny(tmp_path / "run")))]
    file = tmp_path / "plan.json"
    options = [*small, "--devices", "2", "--json", str(file)]
    mine = ["--trainer.strategy.class_path=compressed.Compressed", "--allow-import", "compressed"]
    done = fork_server.command("plan", *options, *mine, folder=tmp_path, environment=on_path)
    assert done.code == 0, done.err
    found = json.loads(file.read_text())
    assert found["configured"]["strategy"] == "Compressed"
    best = {c["strategy"]: c for c in reversed(found["fastest"])}
    assert set(best) >= {"Compressed", "DDP"}
    (half,), (whole,) = (best[name]["transfers"] for name in ("Compressed", "DDP"))
    assert half["whole"] == whole["whole"] / 2

    seldom = json.dumps({"class_path": "LocalSGD", "init_args": {"every": 2}})
    settings = load_settings([*small, f"--trainer.strategy={seldom}"])
    model = CostModel(on_devices(settings, devices=2, nodes=1), device_called("h100"))
    own = configured(model)[2]["configured"]
    assert own["strategy"] == "LocalSGD, every 2 steps"
    assert own["bytes"]["agreed"] == own["bytes"]["parameters"]
    assert own["transfers"][0]["whole"] == whole["whole"] / 2
    assert own["transfers"][0]["calls"] == 1 / 2


def test_what_check_refuses_is_refused() -> None:
    (line,) = refused("plan", *QUICK, "--devices", "3")
    assert line.startswith("batch.tokens=1024 is not a multiple of 3 ranks")


class Secretive(torch.optim.SGD):
    """Cannot update what has no memory."""

    def step(self, closure: Any = None) -> None:
        if any(isinstance(p, FakeTensor) for g in self.param_groups for p in g["params"]):
            raise RuntimeError
        super().step(closure)


def with_optimizer(kind: Any, folder: Path) -> Settings:
    path = configs.write(folder / "c.yaml", configs.tiny(folder / "run"))
    settings = load_settings(["-c", str(path)])
    settings.task.optimizer_config = TorchOptimizer(optimizer=partial(kind, lr=0.1))
    return settings


def test_an_unusual_optimizer_never_stops_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(with_optimizer(Secretive, tmp_path), "h100", "", devices=1, nodes=1)
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "optimizer state " in line)
    assert "unknown, and left out of all sums" in row


def test_an_optimizer_that_reads_a_number_while_it_updates_is_simulated(tmp_path: Path) -> None:
    settings = on_devices(with_optimizer(torch.optim.Adafactor, tmp_path), devices=1, nodes=1)
    _, shown, _ = configured(CostModel(settings, device_called("h100")))
    row = shown["memory of one rank"]["optimizer state"]
    assert "formula 0.0 MiB; simulated 0.0" in row


def test_a_ring_by_hand() -> None:
    device = device_called("h100")
    sent = Transfer(kind="all-reduce", over="replicate", ranks=16, stride=1, whole=1e9, calls=0)
    # Two rounds of 15 / 16 through eight adapters of 50 GB/s: 400 GB/s, below NVLink's 450.
    assert sent.through_rank == pytest.approx(1.875e9)
    assert transfer_seconds(sent, device, 8) == pytest.approx(1.875e9 / (LINK_EFFICIENCY * 400e9))
    # One rank of each node has an adapter of its own.
    across = Transfer(kind="all-gather", over="shard", ranks=2, stride=8, whole=1e9, calls=0)
    assert transfer_seconds(across, device, 8) == pytest.approx(0.5e9 / (LINK_EFFICIENCY * 50e9))


def test_traffic_by_hand() -> None:
    weights = (
        Weight(name="head.weight", extent=(10, 4), block=False, copied=True, cut=0),
        Weight(name="layers.0.weight", extent=(8, 4), block=True, copied=True, cut=0),
    )

    def sent(strategy: Strategy, ranks: int, accumulation: int) -> dict[str, float]:
        work = Workload(
            weights=weights,
            optimizer=AdamW(learning_rate=0.1),
            precision="bf16-mixed",
            accumulation=accumulation,
            activation=100,
        )
        found = strategy.transfers(work, strategy.mesh_shape(ranks))
        return {f"{t.kind} {t.over}": t.whole for t in found if t.ranks > 1}

    assert sent(FSDP(), 2, 3) == {
        "all-gather shard": 2 * 3 * (2 * 32 + 40),
        "reduce-scatter shard": 4 * 72,
    }
    kept = sent(FSDP(reshard_after_forward=False), 2, 3)
    assert kept["all-gather shard"] == 2 * 72
    assert sent(DDP(), 2, 3) == {"all-reduce replicate": 4 * 72}
    assert sent(FSDP(replicas=2), 4, 1)["all-reduce replicate"] == 4 * 72 / 2
    assert sent(LocalSGD(every=8), 2, 3) == {"all-reduce replicate": 4 * 72 / 8}
