"""With reduction: deterministic, any number of ranks gives the bits of one process.

Everything is compared with ``==``: losses, gradient norms, weights and optimizer state.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.testing.checkpoints import final_state
from llm_train.testing.command import refused, run
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

pytestmark = pytest.mark.distributed
STEPS = 6
NETWORK = "model__network__init_args__"
EXACT = ("train/loss", "grad/norm", "val/loss")
# A width of 18 leaves shards of unequal length, and shards shorter than a vector, on 4 ranks.
PLAIN = {f"{NETWORK}width": 18, f"{NETWORK}heads": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16-mixed": {"trainer__precision": "bf16-mixed"},
    "muon": {
        "model__optimizer": {
            "class_path": "MuonAdamW",
            "init_args": {"learning_rate": 0.01, "fused": "off"},
        }
    },
    "gpt2": {
        f"{NETWORK}positions": "learned",
        f"{NETWORK}tied": True,
        f"{NETWORK}norm": "layernorm",
        f"{NETWORK}bias": True,
        f"{NETWORK}activation": "gelu",
        "model__loss__class_path": "ChunkedCausalLM",
        "model__recompute__class_path": "EveryBlock",
    },
    # Targets with id 5 do not count, so the loss normaliser is a count over all ranks.
    "ignored": {"model__loss": {"class_path": "CausalLM", "init_args": {"ignore_index": 5}}},
    "three": {"batch__tokens": 384},  # 12 micro-batches: 3 ranks x 4
}


def config(run_dir: Path, strategy: Any, **overrides: Any) -> dict[str, Any]:
    settings = {
        **PLAIN,
        f"{NETWORK}dropout": 0.0,
        "batch__tokens": 256,  # 8 micro-batches, so that each of 4 ranks still has 2
        "checkpoint__every": "3 steps",
        "validate_every": "3 steps",
        "model__optimizer__init_args__fused": "off",
        # This is below every norm of this run, so that clipping acts on each step.
        "trainer__gradient_clip_val": 0.25,
        **overrides,
    }
    return tiny(run_dir, steps=STEPS, trainer__strategy=strategy, **settings)


def by_name(strategy: str, reduction: str) -> Any:
    if strategy == "single":
        return strategy
    return {"class_path": strategy, "init_args": {"reduction": reduction}}


Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Runs a strategy on some ranks, each combination once."""
    known: dict[tuple[Any, ...], Path] = {}

    def train(
        strategy: str = "single",
        ranks: int = 0,
        variant: str = "fp32",
        reduction: str = "deterministic",
        resume: Path | None = None,
    ) -> Path:
        key = (strategy, ranks, variant, reduction, resume)
        if key not in known:
            folder = tmp_path_factory.mktemp(strategy)
            settings = config(folder / "run", by_name(strategy, reduction), **VARIANTS[variant])
            arguments = ["fit", "-c", str(write(folder / "c.yaml", settings))]
            arguments += ["--resume", str(resume)] if resume else []
            log = folder / "log.txt"
            statuses = fork_server.run(*arguments, ranks=ranks, log=log)
            assert set(statuses) == {0}, log.read_text()
            known[key] = folder / "run"
        return known[key]

    return train


def recorded(run_dir: Path) -> dict[tuple[int, str], float]:
    return {
        (record["step"], key): record[key]
        for record in read_metrics(run_dir / "metrics.jsonl")
        for key in EXACT
        if key in record
    }


def unequal_tensors(one: Path, other: Path) -> list[str]:
    first, second = final_state(one, STEPS), final_state(other, STEPS)
    assert first
    assert first.keys() == second.keys()
    return [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]


def assert_same_bits(one: Path, other: Path) -> None:
    assert len(recorded(one)) == 2 * STEPS + 2
    assert recorded(other) == recorded(one)
    assert unequal_tensors(one, other) == []


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [
        *[("DDP", 2), ("FSDP", 2), ("FSDP", 4)],
        *[slow("DDP", 1), slow("DDP", 4), slow("FSDP", 1)],
    ],
)
def test_any_number_of_ranks_equals_one_process(
    strategy: str, ranks: int, trained: Trained
) -> None:
    assert_same_bits(trained(), trained(strategy, ranks))
    clipped = [norm for (_, key), norm in recorded(trained()).items() if key == "grad/norm"]
    assert min(clipped) > 0.25  # clipping had an effect


@pytest.mark.parametrize("strategy", [slow("DDP"), "FSDP"])
def test_without_the_option_they_differ(strategy: str, trained: Trained) -> None:
    """This shows that the test above can fail."""
    fast = trained(strategy, 2, reduction="fast")
    assert recorded(fast) != recorded(trained())
    assert recorded(fast) == pytest.approx(recorded(trained()), rel=1e-5)
    assert unequal_tensors(trained(), fast)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ("fp32", "bf16-mixed")])
def test_variants_equal_one_process(variant: str, strategy: str, trained: Trained) -> None:
    for ranks in (3,) if variant == "three" else (2, 4):
        assert_same_bits(trained(variant=variant), trained(strategy, ranks, variant))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
def test_mixed_precision_equals_one_rank_of_the_strategy(strategy: str, trained: Trained) -> None:
    """FSDP casts norms and activations to bf16, and autocast does not, so results differ."""
    one = trained(strategy, 1, "bf16-mixed")
    for ranks in (2, 4):
        assert_same_bits(one, trained(strategy, ranks, "bf16-mixed"))
    single = trained(variant="bf16-mixed")
    assert (recorded(single) == recorded(one)) == (strategy == "DDP")


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (("FSDP", 2), ("FSDP", 4)),
        slow(("single", 0), ("FSDP", 4)),
        slow(("FSDP", 4), ("single", 0)),
        slow(("FSDP", 4), ("DDP", 2)),
        slow(("DDP", 2), ("FSDP", 4)),
    ],
)
def test_resumes_bitwise_on_other_ranks(
    start: tuple[str, int], end: tuple[str, int], trained: Trained
) -> None:
    halfway = trained(*start) / "checkpoints" / "step-00000003"
    resumed = trained(*end, resume=halfway)
    expected = {key: value for key, value in recorded(trained()).items() if key[0] > 3}
    assert recorded(resumed) == expected
    assert unequal_tensors(trained(), resumed) == []


@pytest.mark.parametrize("ranks", [1, 3])
def test_gradients_are_added_in_order(ranks: int, fork_server: ForkServer, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = Path(__file__).with_name("deterministic_worker.py")
    statuses = fork_server.run(str(tmp_path), ranks=ranks, log=log, script=str(script))
    assert statuses == [0] * ranks, log.read_text()
    assert len(list(tmp_path.glob("rank-*"))) == ranks


# The strategy, what is changed, how the one line begins, and the way out.
RULES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bf16-true": (
        "DDP",
        {"trainer__precision": "bf16-true"},
        "trainer.precision=bf16-true",
        "bf16-mixed or 32-true",
    ),
    "float8": (
        "DDP",
        {"model__float8": "rowwise", f"{NETWORK}width": 32, f"{NETWORK}heads": 2},
        "model.float8=rowwise",
        "model.float8=none",
    ),
    "dropout": ("DDP", {f"{NETWORK}dropout": 0.1}, "reduction: deterministic", "dropout=0"),
    "fused": (
        "FSDP",
        {"model__optimizer__init_args__fused": "auto"},
        "reduction: deterministic under FSDP",
        "model.optimizer.init_args.fused=off, here and in the runs to compare with",
    ),
    "replicas": (
        "FSDP",
        {"trainer__strategy__init_args__replicas": 2},
        "trainer.strategy.init_args.replicas=2",
        "leave replicas out, or set reduction: fast",
    ),
    "odd": (
        "DDP",
        {"trainer__devices": 3, "batch__tokens": 3 * 3 * 32},
        "reduction: deterministic with 3 ranks x 3 micro-batches",
        "change the number of ranks, batch.tokens or batch.per_device",
    ),
    "word": (
        "DDP",
        {"trainer__strategy__init_args__reduction": "slow"},
        "trainer.strategy.init_args.reduction=slow",
        "fast, deterministic",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_would_break_it_is_refused(rule: str, tmp_path: Path) -> None:
    strategy, overrides, start, way_out = RULES[rule]
    settings = {"trainer__devices": 4, **overrides}
    place = config(tmp_path / "run", by_name(strategy, "deterministic"), **settings)
    (line,) = refused("check", "-c", str(write(tmp_path / "c.yaml", place)))
    assert line.startswith(start)
    assert "reduction" in line
    assert way_out in line


def test_a_fused_optimizer_is_allowed_under_ddp(tmp_path: Path) -> None:
    """Every rank updates whole tensors, as one process does."""
    fused = {"model__optimizer__init_args__fused": "auto", "trainer__devices": 4}
    settings = config(tmp_path / "run", by_name("DDP", "deterministic"), **fused)
    assert run("check", "-c", str(write(tmp_path / "c.yaml", settings))).err == ""
