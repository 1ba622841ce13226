"""With reduction: deterministic, any number of ranks gives the bits of one process.

Everything is compared with ``==``: losses, gradient norms, weights and optimizer state.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.checkpoint import dcp
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import ConfigError
from llm_train.testing.command import refused, run
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics
from llm_train.trainer.strategy import DDP, FSDP, deterministic

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


def final_state(run_dir: Path) -> dict[str, torch.Tensor]:
    """Returns weights and optimizer state of the last checkpoint."""
    path = CheckpointStore(run_dir / "checkpoints").newest().path
    assert path is not None
    assert path.name == f"step-{STEPS:08d}"
    stored = dcp.keys(path / "state")
    tensors = {k: torch.empty(m.size, dtype=m.properties.dtype) for k, m in stored.items()}
    dcp.read(path / "state", tensors)
    return tensors


def unequal_tensors(one: Path, other: Path) -> list[str]:
    first, second = final_state(one), final_state(other)
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
def test_buckets_fold_in_order(ranks: int, fork_server: ForkServer, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = Path(__file__).with_name("deterministic_worker.py")
    statuses = fork_server.run(str(tmp_path), ranks=ranks, log=log, script=str(script))
    assert statuses == [0] * ranks, log.read_text()
    assert len(list(tmp_path.glob("rank-*"))) == ranks


RULES: dict[str, tuple[str, dict[str, Any], str]] = {
    "bf16-true": (
        "DDP",
        {"trainer__precision": "bf16-true"},
        "trainer.precision=bf16-true with reduction: deterministic sums gradients in bf16, where "
        "one process and several round differently; write 32-true or bf16-mixed",
    ),
    "float8": (
        "DDP",
        {"model__float8": "rowwise", f"{NETWORK}width": 32, f"{NETWORK}heads": 2},
        "model.float8=rowwise with reduction: deterministic: FP8 scales were not shown to be the "
        "same on any number of ranks; set model.float8=none",
    ),
    "dropout": (
        "DDP",
        {f"{NETWORK}dropout": 0.1},
        "reduction: deterministic with dropout: every rank draws masks of its own, so results "
        "depend on the number of ranks; set model.network.init_args.dropout=0",
    ),
    "fused": (
        "FSDP",
        {"model__optimizer__init_args__fused": "auto"},
        "reduction: deterministic under FSDP with a fused optimizer: its kernel rounds the last "
        "elements of a tensor differently, and every shard has last elements; set "
        "model.optimizer.init_args.fused=off, here and in the runs to compare with",
    ),
    "replicas": (
        "FSDP",
        {"trainer__strategy__init_args__replicas": 2},
        "trainer.strategy.init_args.replicas=2 with reduction: deterministic is not supported; "
        "leave replicas out, or set reduction: fast",
    ),
    "odd": (
        "DDP",
        {"trainer__devices": 3, "batch__tokens": 3 * 3 * 32},
        "reduction: deterministic with 3 ranks x 3 micro-batches: one of the two must be a power "
        "of two, or dividing by both may round differently than dividing by their product; change "
        "the number of ranks, batch.tokens or batch.per_device",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_would_break_it_is_refused(rule: str, tmp_path: Path) -> None:
    strategy, overrides, line = RULES[rule]
    settings = {"trainer__devices": 4, **overrides}
    place = config(tmp_path / "run", by_name(strategy, "deterministic"), **settings)
    assert refused("check", "-c", str(write(tmp_path / "c.yaml", place))) == [line]


def test_a_fused_optimizer_is_allowed_under_ddp(tmp_path: Path) -> None:
    """Every rank updates whole tensors, as one process does."""
    fused = {"model__optimizer__init_args__fused": "auto", "trainer__devices": 4}
    settings = config(tmp_path / "run", by_name("DDP", "deterministic"), **fused)
    assert run("check", "-c", str(write(tmp_path / "c.yaml", settings))).err == ""


def test_other_words_are_refused() -> None:
    for strategy in (DDP, FSDP):
        with pytest.raises(ConfigError, match="reduction='slow' is not one of fast, deterministic"):
            strategy(reduction="slow")  # type: ignore[arg-type]


def test_a_torch_without_the_hooks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deterministic, "_HOOKS", ("set_custom_reduce_scatter", "set_no_such_hook"))
    with pytest.raises(ConfigError, match=r"needs FSDPModule\.set_no_such_hook, which torch"):
        deterministic.Shards(torch.nn.Linear(1, 1))
