"""Replicas that train alone, compared with a simulation, with DDP, and with their own resume."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llm_train.checkpoint.compatibility import require_loadable
from llm_train.data import RandomTokens
from llm_train.data.sampler import MicroBatches, Share
from llm_train.errors import CheckpointError
from llm_train.model.loss import CausalLM
from llm_train.model.network import Transformer, initialise
from llm_train.model.optimizer import AdamW, MuonAdamW
from llm_train.model.schedule import WarmupCosine
from llm_train.testing.checkpoints import final_state
from llm_train.testing.command import refused
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics
from llm_train.trainer.strategy import LocalSGD, SingleDevice
from llm_train.units import Duration

WORKER = Path(__file__).with_name("local_sgd_worker.py")
STEPS = 8
DILOCO = {"every": 4, "outer_learning_rate": 0.7, "outer_momentum": 0.9}
SGD = {
    "class_path": "TorchOptimizer",
    "init_args": {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    },
}


def local_sgd(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "LocalSGD", "init_args": arguments or DILOCO}


def config(run_dir: Path, **overrides: Any) -> dict[str, Any]:
    """Returns eight steps of two micro-batches on each of two ranks, clipped at every step."""
    settings = {
        "model__network__init_args__dropout": 0.0,
        "trainer__strategy": local_sgd(),
        "trainer__gradient_clip_val": 0.25,
        "checkpoint__every": "4 steps",
        "validate_every": "4 steps",
    }
    return tiny(run_dir, steps=STEPS, **{**settings, **overrides})


class Run:
    """A run of two ranks and what it left behind.

    Args:
        folder: of its own.
        fork_server: starts them.
        arguments: further ones of the command line.
        end: step to end at and how.
        overrides: of the configuration.
    """

    def __init__(
        self,
        folder: Path,
        fork_server: ForkServer,
        *arguments: str,
        end: tuple[int, str] = (0, "signal"),
        statuses: tuple[int, int] = (0, 0),
        **overrides: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.run_dir, log = folder / "run", folder / "log.txt"
        self.path = write(folder / "c.yaml", config(self.run_dir, **overrides))
        given = [str(folder / "seen"), str(end[0]), end[1], "fit", "-c", str(self.path), *arguments]
        found = fork_server.run(*given, ranks=2, log=log, script=WORKER)
        assert found == list(statuses), log.read_text()
        self.seen = [json.loads((folder / "seen" / f"{r}.json").read_text()) for r in (0, 1)]
        self.weights = [torch.load(folder / "seen" / f"{r}.pt") for r in (0, 1)]

    def curve(self, key: str) -> dict[int, float]:
        records = read_metrics(self.run_dir / "metrics.jsonl")
        return {record["step"]: record[key] for record in records if key in record}

    def equal_after(self) -> list[int]:
        """Returns the steps after which the replicas' weights are the same, bit for bit."""
        mine, theirs = self.seen
        return [int(step) for step in mine if mine[step]["weights"] == theirs[step]["weights"]]

    def collectives(self) -> dict[int, dict[str, int]]:
        """Returns the collectives of steps that had any, from first micro-batch to update."""
        return {
            int(s): seen["collectives"] for s, seen in self.seen[0].items() if seen["collectives"]
        }


def simulate(
    optimizer: Any, every: int, rate: float, momentum: float, ignore: int
) -> tuple[list[nn.Module], list[float], list[float]]:
    """Runs two replicas in turn in one process; returns networks, mean losses and mean norms."""
    network = Transformer(
        vocab_size=61, layers=2, width=16, heads=2, max_sequence=16, dropout=0.0
    ).build()
    initialise(network, 7)
    replicas: list[Any] = [network, copy.deepcopy(network)]
    optimizers = [optimizer.build(replica.named_parameters()) for replica in replicas]
    peaks = [group["lr"] for group in optimizers[0].param_groups]
    factor = WarmupCosine(warmup=Duration(2, "steps")).build(total_steps=STEPS, tokens_per_step=128)
    source = RandomTokens(vocabulary=61, length=4000, held_out_length=300, seed=3)
    windows = source.train_windows(16, 7)
    shares = [Share(rank=r, data_ranks=2, per_device=2, accumulation=2) for r in (0, 1)]
    turns = [iter(MicroBatches(s, steps_total=STEPS, steps_done=0, consumed=0)) for s in shares]
    agreed = [p.detach().clone() for p in network.parameters()]
    velocity = [torch.zeros_like(p) for p in agreed]
    losses, norms = [], []
    for step in range(STEPS):
        nats = tokens = norm = 0.0
        for replica, inner, turn in zip(replicas, optimizers, turns, strict=True):
            ids = torch.cat([torch.from_numpy(windows.batch(next(turn))) for _ in range(2)]).long()
            sums = replica(ids[:, :-1], partial(CausalLM(ignore_index=ignore), targets=ids[:, 1:]))
            (sums.objective / sums.tokens).backward()
            nats, tokens = nats + sums.nats.item(), tokens + sums.tokens.item()
            norm += nn.utils.clip_grad_norm_(replica.parameters(), 0.25).item() / 2
            for group, peak in zip(inner.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(step)
            inner.step()
            inner.zero_grad()
        losses.append(nats / tokens)
        norms.append(norm)
        if (step + 1) % every == 0:
            both = zip(*(replica.parameters() for replica in replicas), strict=True)
            with torch.no_grad():
                for start, v, pair in zip(agreed, velocity, both, strict=True):
                    gradient = start - (pair[0] + pair[1]) / 2
                    v.mul_(momentum).add_(gradient)
                    start -= rate * (gradient + momentum * v)
                    for parameter in pair:
                        parameter.copy_(start)
    return replicas, losses, norms


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("optimizer", "ignore"),
    [("AdamW", -100), ("AdamW", 0), pytest.param("MuonAdamW", -100, marks=pytest.mark.slow)],
)
def test_diloco_is_what_a_plain_loop_computes(
    optimizer: str, ignore: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """With ignored targets (mostly id 0), each replica has a loss normaliser of its own."""
    chosen = {"AdamW": AdamW, "MuonAdamW": MuonAdamW}[optimizer](learning_rate=0.01)
    run = Run(
        tmp_path / "run",
        fork_server,
        model__optimizer={"class_path": optimizer, "init_args": {"learning_rate": 0.01}},
        model__loss={"class_path": "CausalLM", "init_args": {"ignore_index": ignore}},
    )
    replicas, losses, norms = simulate(chosen, 4, 0.7, 0.9, ignore)
    assert list(run.curve("train/loss").values()) == pytest.approx(losses, rel=1e-5)
    assert list(run.curve("grad/norm").values()) == pytest.approx(norms, rel=1e-4)
    assert min(norms) > 0.25  # clipping had an effect
    for name, expected in replicas[0].named_parameters():
        torch.testing.assert_close(run.weights[0][name], expected.detach(), rtol=1e-4, atol=2e-6)
    assert run.equal_after() == [4, 8]
    assert run.collectives() == {4: {"gloo:all_reduce": 1}, 8: {"gloo:all_reduce": 1}}


@pytest.mark.distributed
def test_averaging_sgd_after_each_step_is_ddp(fork_server: ForkServer, tmp_path: Path) -> None:
    """The mean of weights moved by gradients is the weights moved by the mean of gradients.

    Momentum is linear, too. Replicas then begin where DDP stopped, with its optimizer state. The
    loss of a step is measured before its update, so with one step between averagings all losses
    agree.
    """
    plain = {"model__optimizer": SGD, "trainer__gradient_clip_val": None}
    local = Run(tmp_path / "local", fork_server, trainer__strategy=local_sgd(every=1), **plain)
    ddp = Run(tmp_path / "ddp", fork_server, trainer__strategy="ddp", **plain)
    for key in ("train/loss", "val/loss"):
        assert local.curve(key) == pytest.approx(ddp.curve(key), rel=1e-6)
    for name, expected in ddp.weights[0].items():
        torch.testing.assert_close(local.weights[0][name], expected, rtol=1e-6, atol=1e-7)
    start = local.curve("train/loss")
    assert abs(start[1] - start[STEPS]) > 1e-2  # there is something to compare
    # The probe sees what DDP sends, unless gloo's thread ends that after the probe of its step.
    assert len(ddp.collectives()) >= STEPS // 2
    assert local.collectives() == {s: {"gloo:all_reduce": 1} for s in range(1, STEPS + 1)}
    start_at = ["--resume", str(ddp.run_dir / "checkpoints" / "step-00000004")]
    begun = Run(
        tmp_path / "begun", fork_server, *start_at, trainer__strategy=local_sgd(every=1), **plain
    )
    expected = {s: loss for s, loss in ddp.curve("train/loss").items() if s > 4}
    assert begun.curve("train/loss") == pytest.approx(expected, rel=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [
        ("bf16-mixed", "AdamW"),
        # Each rank compiles its update.
        pytest.param("bf16-true", "LowBitAdamW", marks=pytest.mark.slow),
    ],
)
def test_low_precision(
    precision: str, optimizer: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Shadow weights follow the outer update; replicas agree although each rounds its own way."""
    more = {"state": "bf16"} if optimizer == "LowBitAdamW" else {}
    run = Run(
        tmp_path / "run",
        fork_server,
        trainer__precision=precision,
        model__optimizer={"class_path": optimizer, "init_args": {"learning_rate": 0.01, **more}},
        trainer__strategy=local_sgd(every=2),
    )
    fresh = {step["shadows"] for step in run.seen[1].values()}
    assert fresh == ({True} if precision == "bf16-mixed" else {None})
    assert run.equal_after() == [2, 4, 6, 8]
    losses = run.curve("train/loss")
    assert losses[STEPS] < losses[1] - 0.1


@pytest.mark.distributed
def test_a_run_stopped_between_two_averagings_continues_bitwise(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """With dropout and momentum, everything that belongs to one replica comes back.

    A checkpoint that is saved between two averagings is scored by its agreed weights.
    """
    dropout = {"model__network__init_args__dropout": 0.1}
    whole = Run(tmp_path / "whole", fork_server, **dropout)
    cut = Run(tmp_path / "cut", fork_server, end=(6, "signal"), statuses=(143, 143), **dropout)
    saved = cut.run_dir / "checkpoints" / "step-00000006"
    assert saved.is_dir()
    assert cut.equal_after() == [4]
    resumed = Run(tmp_path / "cut", fork_server, "--resume", "auto", **dropout)
    assert resumed.equal_after() == [8]
    for key in ("train/loss", "grad/norm", "val/loss"):
        assert resumed.curve(key) == whole.curve(key)
    for mine, expected in zip(resumed.weights, whole.weights, strict=True):
        assert all(torch.equal(mine[name], expected[name]) for name in expected)
    first, second = (final_state(run.run_dir, STEPS) for run in (whole, resumed))
    assert first.keys() == second.keys()
    kinds = {"model", "outer", "replica-00000", "replica-00001"}
    assert {key.split(".")[0] for key in first} == kinds
    assert all(torch.equal(first[key], second[key]) for key in first)
    alone = ["-c", str(cut.path), "--trainer.strategy=single"]
    log = tmp_path / "log.txt"
    assert fork_server.run("validate", *alone, "--checkpoint", str(saved), ranks=0, log=log) == [0]
    agreed = round(whole.curve("val/loss")[4], 4)
    assert f"loss (nats per token)  {agreed}\n" in log.read_text()


def test_what_cannot_take_over_replicas_is_refused() -> None:
    """It is refused before anything is read."""
    path = Path("runs/a/checkpoints/step-00000006")
    metadata = {"state_format": "replicas", "strategy": "LocalSGD", "world_size": 2}
    metadata |= {"step": 6, "data": {"consumed": 48, "fingerprint": ""}, "seed": 7, "sequence": 16}
    metadata |= {"samples_per_step": 8, "optimizer": "AdamW", "stages": [], "learning_rate": 0.1}
    require_loadable(path, metadata, LocalSGD(every=4), 2)
    require_loadable(path, {**metadata, "state_format": "dcp"}, LocalSGD(every=4), 4)
    with pytest.raises(CheckpointError) as other_ranks:
        require_loadable(path, metadata, LocalSGD(every=4), 4)
    assert str(other_ranks.value).startswith(f"{path} holds 2 replicas of LocalSGD")
    assert "4 ranks cannot take over; resume on as many" in str(other_ranks.value)
    with pytest.raises(CheckpointError) as other_strategy:
        require_loadable(path, metadata, SingleDevice(), 1)
    assert str(other_strategy.value).startswith(f"{path} was written by LocalSGD in replicas")
    assert "SingleDevice cannot read; resume with trainer.strategy=Loc" in str(other_strategy.value)


@pytest.mark.distributed
def test_validation_between_two_averagings_scores_what_was_agreed(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """As a Timer causes it; the replicas' own weights are back when the run is saved."""
    timed = Run(tmp_path / "timed", fork_server, end=(6, "callback"))
    assert timed.curve("val/loss")[6] == timed.curve("val/loss")[4]
    state = final_state(timed.run_dir, 6)
    for rank, weights in enumerate(timed.weights):
        for name, tensor in weights.items():
            assert torch.equal(tensor, state[f"replica-{rank:05d}.model.{name}"])
            assert not torch.equal(tensor, state[f"model.{name}"])


@pytest.mark.distributed
def test_a_gradient_that_one_replica_alone_finds_infinite_ends_all(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """Its loss is still finite, and the others must not wait for it at the next averaging."""
    path, log = write(tmp_path / "c.yaml", config(tmp_path / "run")), tmp_path / "log.txt"
    arguments = [str(tmp_path / "seen"), "3", "poison", "fit", "-c", str(path)]
    assert fork_server.run(*arguments, ranks=2, log=log, script=WORKER)[0] == 2, log.read_text()
    assert "grad/norm=inf at step 3: the run cannot recover" in log.read_text()


RULE = "is not a multiple of trainer.strategy.init_args.every=4"


@pytest.mark.parametrize(
    ("options", "start", "way_out"),
    [
        ({"budget": "10 steps"}, f"budget=10 steps {RULE}", "nearest: 8 or 12 steps"),
        (
            {"validate_every": "384 tokens"},
            f"validate_every=384 tokens = 3 steps {RULE}",
            "nearest: 4 steps",
        ),
        (
            {"checkpoint__every": "6 steps"},
            f"checkpoint.every=6 steps {RULE}",
            "nearest: 4 or 8 steps",
        ),
        ({"trainer__devices": 1}, "trainer.strategy=LocalSGD", "start several with torchrun or"),
        (
            {"trainer__strategy": local_sgd(every=0)},
            "trainer.strategy.init_args.every=0",
            "must be at least 1 optimizer step",
        ),
        (
            {"trainer__strategy": local_sgd(every=4, outer_learning_rate=0.0)},
            "trainer.strategy.init_args.outer_learning_rate=0.0",
            "must be above 0",
        ),
        (
            {"trainer__strategy": local_sgd(every=4, outer_momentum=1.0)},
            "trainer.strategy.init_args.outer_momentum=1.0",
            "must be at least 0 and below 1",
        ),
    ],
)
def test_what_would_not_work_is_one_line(
    options: dict[str, Any], start: str, way_out: str, tmp_path: Path
) -> None:
    settings = config(tmp_path / "run", **{"trainer__devices": 2, **options})
    (line,) = refused("check", "-c", str(write(tmp_path / "c.yaml", settings)))
    assert line.startswith(start)
    assert way_out in line
