"""Tests what the verb prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_train.errors import ConfigError
from llm_train.plan.devices import ACCELERATORS, accelerator
from llm_train.plan.formula import Weight
from llm_train.plan.placing import Placing
from llm_train.plan.traffic import LINK_EFFICIENCY, Transfer, traffic
from llm_train.testing.command import refused, run
from llm_train.trainer.strategy.mesh import MeshShape

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
        data_ranks = found["layout"]["replicas"] * found["layout"]["shards"]
        assert found["micro_batch"] * found["micro_batches"] * data_ranks == 8


def test_what_check_refuses_is_refused() -> None:
    (line,) = refused("plan", *QUICK, "--devices", "3")
    assert line.startswith("batch.tokens=1024 is not a multiple of 3 ranks")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--gpu h20 is not known; did you mean h200\? known: "):
        accelerator("h20")
    for name in ACCELERATORS:
        assert accelerator(name).peak_flops("bf16-mixed") > 1e13


def test_a_ring_by_hand() -> None:
    device = accelerator("h100")
    sent = Transfer(kind="all-reduce", over="replicate", ranks=16, stride=1, whole=1e9, calls=0)
    # Two rounds of 15 / 16 through eight adapters of 50 GB/s: 400 GB/s, below NVLink's 450.
    assert sent.through_rank == pytest.approx(1.875e9)
    assert sent.seconds(device, 8) == pytest.approx(1.875e9 / (LINK_EFFICIENCY * 400e9))
    # One rank of each node has an adapter of its own.
    across = Transfer(kind="all-gather", over="shard", ranks=2, stride=8, whole=1e9, calls=0)
    assert across.seconds(device, 8) == pytest.approx(0.5e9 / (LINK_EFFICIENCY * 50e9))


def test_traffic_by_hand() -> None:
    weights = [
        Weight(name="head.weight", shape=(10, 4), block=False, copied=True, cut=0),
        Weight(name="layers.0.weight", shape=(8, 4), block=True, copied=True, cut=0),
    ]

    def sent(placing: Placing, accumulation: int) -> dict[str, float]:
        found = traffic(
            weights,
            placing,
            "bf16-mixed",
            accumulation=accumulation,
            activation=100,
            layers=1,
            recomputed=0.0,
        )
        return {f"{t.kind} {t.over}": t.whole for t in found}

    fsdp = Placing(kind="fsdp", layout=MeshShape(shards=2))
    assert sent(fsdp, 3) == {
        "all-gather shard": 2 * 3 * (2 * 32 + 40),
        "reduce-scatter shard": 4 * 72,
    }
    kept = Placing(kind="fsdp", layout=MeshShape(shards=2), reshard=False)
    assert sent(kept, 3)["all-gather shard"] == 2 * 72
    assert sent(Placing(kind="ddp", layout=MeshShape(replicas=2)), 3) == {
        "all-reduce replicate": 4 * 72
    }
    hybrid = Placing(kind="fsdp", layout=MeshShape(shards=2, replicas=2))
    assert sent(hybrid, 1)["all-reduce replicate"] == 4 * 72 / 2
