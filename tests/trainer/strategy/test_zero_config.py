"""What DeepSpeed is told arrives there, and what it does not know is refused before the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.command import refused
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"gradient_clipping": 1.0}}, "is trainer.gradient_clip_val here; set that"),
        (
            {"config": {"zero_optimization": {"stage": 3}}},
            "is trainer.strategy.init_args.stage here",
        ),
        ({"config": {"zero_optimisation": {}}}, "did you mean zero_optimization?"),
        (
            {"config": {"zero_optimization": {"round_robin_gradient": True}}},
            "zero_optimization.round_robin_gradient is no key of DeepSpeed; did you mean "
            "round_robin_gradients?",
        ),
        (
            {"stage": 3, "config": {"zero_optimization": {"stage3_prefetch_bucket_size": "big"}}},
            "stage3_prefetch_bucket_size=big: Input should be a valid integer",
        ),
        (
            {"config": {"zero_optimization": {"max_live_parameters": 10**8}}},
            "max_live_parameters has no effect at stage 2; remove it",
        ),
        (
            {"stage": 3, "config": {"zero_optimization": {"round_robin_gradients": True}}},
            "round_robin_gradients has no effect at stage 3; remove it",
        ),
        ({"config": {"communication_data_type": "fp8"}}, "one of fp32, bf16, fp16"),
        ({"reduce_bucket_size": 0}, "reduce_bucket_size=0 must be at least 1"),
        ({"hpz_partition_size": 2}, "hpz_partition_size=2 has no effect below stage 3"),
        ({"stage": 3, "hpz_partition_size": 3}, "does not divide the 2 ranks"),
        ({"stage": 3, "allgather_bucket_size": 6}, "allgather_bucket_size=6 has no effect at"),
    ],
)
def test_what_deepspeed_would_ignore_or_die_of_is_one_line(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    strategy = part("ZeRO", **arguments)
    config = tiny(tmp_path / "run", trainer__strategy=strategy, trainer__devices=2)
    (line,) = refused("check", "-c", str(write(tmp_path / "c.yaml", config)))
    assert line.startswith("trainer.strategy.init_args.")
    assert message in line


TUNED = {
    "reduce_bucket_size": 500,
    "overlap_comm": False,
    "contiguous_gradients": False,
}


def told(**section: Any) -> dict[str, Any]:
    return {"config": {"communication_data_type": "fp32", "zero_optimization": section}}


@pytest.mark.distributed
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            {"stage": 2, "allgather_bucket_size": 500} | TUNED | told(round_robin_gradients=True),
            marks=pytest.mark.slow,
        ),
        {"stage": 3, "sub_group_size": 1000} | TUNED | told(max_live_parameters=10**6),
        pytest.param({"stage": 3, "hpz_partition_size": 2}, marks=pytest.mark.slow),
    ],
    ids=["stage 2", "stage 3", "hpz"],
)
def test_a_tuned_run_has_the_same_losses_and_resumes(
    arguments: dict[str, Any], fork_server: ForkServer, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"

    def fit(name: str, strategy: Any, ranks: int, *more: str) -> dict[int, float]:
        still = {"model__network__init_args__dropout": 0.0}
        config = tiny(tmp_path / name, trainer__strategy=strategy, **still)
        path = str(write(tmp_path / f"{name}.yaml", config))
        codes = fork_server.run("fit", "-c", path, *more, ranks=ranks, log=log)
        assert set(codes) == {0}, log.read_text()
        return losses(tmp_path / name)

    tuned = part("ZeRO", **arguments)
    whole = fit("whole", tuned, 2)
    assert whole == pytest.approx(fit("alone", "single", 0), rel=1e-6)
    start = str(tmp_path / "whole" / "checkpoints" / "step-00000002")
    assert fit("resumed", tuned, 2, "--resume", start) == {s: whole[s] for s in (3, 4, 5, 6)}
