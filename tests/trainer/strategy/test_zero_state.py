"""A run begun under ZeRO continues under any other strategy, and the reverse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_train.checkpoint.compatibility import require_loadable
from llm_train.checkpoint.dcp import Reader
from llm_train.errors import CheckpointError
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics
from llm_train.trainer.strategy import DDP, FSDP, SingleDevice, World, ZeRO

STEPS, MIDDLE = 8, 4
WORKER = Path(__file__).with_name("offload_worker.py")
MOMENTUM = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
Case = tuple[str, int]  # strategy, ranks; 0 is a process without a launcher
CASES: list[Case] = [
    ("single", 0),
    ("ddp", 2),
    ("fsdp", 2),
    ("zero1", 2),
    ("zero2", 4),
    ("zero3", 1),
    ("zero3", 2),
]
Fit = Callable[..., dict[int, float]]
pytestmark = pytest.mark.distributed


def config(run_dir: Path, strategy: Any, **overrides: Any) -> dict[str, Any]:
    settings = {
        "model__network__init_args__dropout": 0.0,
        "checkpoint__every": f"{MIDDLE} steps",
        "validate_every": "0 steps",
        "trainer__gradient_clip_val": 0.25,
    }
    return tiny(run_dir, steps=STEPS, trainer__strategy=strategy, **{**settings, **overrides})


@pytest.fixture(scope="module")
def fit(fork_server: ForkServer) -> Fit:
    """Trains in a folder, once, and returns the loss of each step."""

    def run(
        folder: Path, strategy: Any, ranks: int, resume: Path | None = None, **overrides: Any
    ) -> dict[int, float]:
        options = {"script": overrides.pop("script")} if "script" in overrides else {}
        if not (folder / "c.yaml").exists():
            folder.mkdir(parents=True, exist_ok=True)
            path = write(folder / "c.yaml", config(folder / "run", strategy, **overrides))
            arguments = ["fit", "-c", str(path), *(["--resume", str(resume)] if resume else [])]
            log = folder / "log.txt"
            statuses = fork_server.run(*arguments, ranks=ranks, log=log, **options)
            assert set(statuses) == {0}, log.read_text()
        records = read_metrics(folder / "run" / "metrics.jsonl")
        return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}

    return run


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of uninterrupted runs, each named after its strategy and ranks."""
    return tmp_path_factory.mktemp("begun")


def middle(folder: Path) -> Path:
    return folder / "run" / "checkpoints" / f"step-{MIDDLE:08d}"


def crossed(source: Case, target: Case, begun: Path, fit: Fit, tmp_path: Path) -> float:
    """Returns the largest relative difference of a loss from one process without interruption."""
    expected = fit(begun / "single-0", "single", 0)
    folder = begun / f"{source[0]}-{source[1]}"
    fit(folder, *source)
    losses = fit(tmp_path / f"{target[0]}-{target[1]}", *target, resume=middle(folder))
    assert list(losses) == list(range(MIDDLE + 1, STEPS + 1))
    return max(abs(losses[step] / expected[step] - 1) for step in losses)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("zero1", 2), ("single", 0)),
        (("zero3", 2), ("fsdp", 2)),
        (("zero3", 2), ("zero2", 1)),
        (("single", 0), ("zero3", 2)),
    ],
)
def test_a_few_ways(source: Case, target: Case, begun: Path, fit: Fit, tmp_path: Path) -> None:
    assert crossed(source, target, begun, fit, tmp_path) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("source", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_all_ways(source: Case, begun: Path, fit: Fit, tmp_path: Path) -> None:
    found = {target: crossed(source, target, begun, fit, tmp_path) for target in CASES}
    assert max(found.values()) < 1e-6, found


@pytest.mark.parametrize("source", [("zero1", 2), ("zero3", 2)])
def test_what_is_stored_is_what_one_process_stores(source: Case, begun: Path, fit: Fit) -> None:
    stored = []
    for strategy, ranks in (("single", 0), source):
        fit(begun / f"{strategy}-{ranks}", strategy, ranks)
        state = middle(begun / f"{strategy}-{ranks}") / "state"
        metadata = Reader(state).read_metadata().state_dict_metadata
        stored.append({key: (meta.size, meta.properties.dtype) for key, meta in metadata.items()})
        assert (state / "optimizer_scalars.json").read_text() == "{}"
    assert stored[0] == stored[1]


def test_validation_under_zero(
    fork_server: ForkServer, begun: Path, fit: Fit, tmp_path: Path
) -> None:
    """DeepSpeed cannot only validate, so that FSDP reads the weights."""
    fit(begun / "zero3-2", "zero3", 2)
    log = tmp_path / "log.txt"
    arguments = ["validate", "-c", str(begun / "zero3-2" / "c.yaml")]
    assert fork_server.run(*arguments, ranks=2, log=log) == [0, 0], log.read_text()
    metrics = read_metrics(begun / "zero3-2" / "run" / "metrics.jsonl")
    (expected,) = (r["val/loss"] for r in metrics if "val/loss" in r)
    (line,) = (x for x in log.read_text().splitlines() if "loss (nats per token)" in x)
    assert float(line.split()[-1]) == pytest.approx(expected, abs=1e-4)


def test_a_strategy_says_what_validates_in_its_place() -> None:
    ddp = DDP()
    assert ddp.validating(World(ranks=2, devices=2)) is ddp
    assert isinstance(ZeRO().validating(World(ranks=2, devices=2)), FSDP)
    assert isinstance(ZeRO().validating(World()), SingleDevice)


@pytest.mark.slow
def test_momentum_of_sgd(fit: Fit, tmp_path: Path) -> None:
    optimizer = {"class_path": "TorchOptimizer", "init_args": {"optimizer": MOMENTUM}}
    settings = {"model__optimizer": optimizer}
    alone = fit(tmp_path / "alone", "single", 0, **settings)
    start = middle(tmp_path / "alone")
    losses = fit(tmp_path / "zero", "zero2", 2, resume=start, **settings)
    assert losses == pytest.approx({s: alone[s] for s in losses}, rel=1e-6)
    fit(tmp_path / "begun", "zero3", 2, **settings)
    losses = fit(tmp_path / "end", "single", 0, resume=middle(tmp_path / "begun"), **settings)
    assert losses == pytest.approx({s: alone[s] for s in losses}, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("zero2", "zero3"), ("zero3", "zero1")])
def test_mixed_precision(source: str, target: str, fit: Fit, tmp_path: Path) -> None:
    """The first loss after the change reads the same casts of the same masters."""
    settings = {"trainer__precision": "bf16-mixed"}
    expected = fit(tmp_path / source, source, 2, **settings)
    start = middle(tmp_path / source)
    losses = fit(tmp_path / target, target, 2, resume=start, **settings)
    assert losses[MIDDLE + 1] == pytest.approx(expected[MIDDLE + 1], rel=1e-6)
    assert losses == pytest.approx({s: expected[s] for s in losses}, rel=5e-3)


@pytest.mark.parametrize(
    "stage", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_offloaded_state(stage: int, begun: Path, fit: Fit, tmp_path: Path) -> None:
    """State in host memory is updated, saved and read like any other."""
    expected = fit(begun / "single-0", "single", 0)
    arguments = {"stage": stage, "offload_optimizer": "cpu"}
    if stage == 3:
        arguments["offload_parameters"] = "cpu"
    strategy = {"class_path": "ZeRO", "init_args": arguments}
    losses = fit(tmp_path / "first", strategy, 2, script=str(WORKER))
    assert losses == pytest.approx(expected, rel=1e-6)
    start = middle(tmp_path / "first")
    losses = fit(tmp_path / "second", strategy, 2, resume=start, script=str(WORKER))
    assert losses == pytest.approx({s: expected[s] for s in losses}, rel=1e-6)


def test_a_format_of_another_strategy_is_refused() -> None:
    metadata = {"state_format": "replicas", "strategy": "LocalSGD", "world_size": 2}
    metadata |= {"step": 1, "data": {"consumed": 8, "fingerprint": ""}, "seed": 7, "sequence": 16}
    metadata |= {"samples_per_step": 8, "optimizer": "AdamW", "stages": [], "learning_rate": 0.1}
    with pytest.raises(CheckpointError, match="ZeRO cannot read; resume with trainer"):
        require_loadable(Path("runs/x/step-00000001"), metadata, ZeRO(), 2)
