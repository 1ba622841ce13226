"""The gradient noise scale against closed forms, and what measuring it does to a run: nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from llm_train import build, load_settings
from llm_train.analysis.noise import estimates, noise_scale
from llm_train.derived import Derived
from llm_train.errors import ConfigError
from llm_train.run_state import TaskBase
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.callbacks import Metrics
from llm_train.trainer.callbacks.noise_scale import NoiseScale
from llm_train.trainer.logger.records import Record, encode, read_lines, read_metrics
from llm_train.trainer.strategy import SingleDevice
from llm_train.units import Batch, Duration
from llm_train.verbs.advise import advice

WIDTH, NOISE, STEPS = 50, 3.0, 400
MEASURED = {"trainer__callbacks": [part("NoiseScale")]}


class Quadratic(TaskBase):
    """1/2 |w - x|^2 with x ~ N(0, NOISE^2): the gradient is w, its covariance NOISE^2 I."""

    def __init__(self) -> None:
        super().__init__()
        network: Any = nn.Linear(WIDTH, 1, bias=False)
        nn.init.constant_(network.weight, 0.5)
        self.network = network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return 0.5 * (self.network.weight - batch).square().sum(dim=1).mean()

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any
    ) -> None:
        self.run_state.gradient_norm = nn.utils.get_total_norm([self.network.weight.grad])
        self.run_state.sums += 1


class Seen(pl.Callback):
    def __init__(self) -> None:
        self.records: list[Record] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.records.append(dict(pl_module.run_state.latest))


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
def test_a_quadratic_with_known_noise_has_the_noise_scale_of_the_closed_form(
    tmp_path: Path,
) -> None:
    """B = tr C / |G|^2 = WIDTH NOISE^2 / |w|^2 tokens, here samples; 4 of 16 are a micro-batch."""
    task, seen = Quadratic(), Seen()
    task._derived = Derived.of(
        seed=1,
        batch=Batch(tokens=16, sequence=1, per_device=4),
        budget=Duration(STEPS, "steps"),
        validate_every=Duration(0, "steps"),
        log_every=10,
        ranks=1,
    )
    trainer = pl.Trainer(
        strategy=SingleDevice("cpu"),
        max_steps=STEPS,
        max_epochs=-1,
        accumulate_grad_batches=4,
        callbacks=[Metrics(), NoiseScale(smoothing=0.99), seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = NOISE * torch.randn(4 * STEPS, 4, WIDTH, generator=torch.Generator().manual_seed(3))
    trainer.fit(task, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    expected = WIDTH * NOISE**2 / (WIDTH * 0.25)
    records = seen.records[40::40]
    found = noise_scale(
        [record["noise/gradient_squared"] for record in records],
        [record["noise/trace"] for record in records],
    )
    assert found.tokens == pytest.approx(expected, rel=0.1)
    assert abs(found.tokens - expected) < 3 * found.error < 0.3 * expected
    assert records[-1]["noise/scale_tokens"] == pytest.approx(expected, rel=0.15)


@pytest.mark.distributed
def test_ranks_measure_their_own_gradients_and_say_no_more_to_each_other(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """Two ranks with one micro-batch each: losses and collectives are those without measuring."""
    runs = {}
    for name, measured in {"plain": {}, "measured": MEASURED}.items():
        place = tmp_path / name
        place.mkdir()
        shape: dict[str, Any] = {"batch__tokens": 64, "checkpoint__every": "0 steps"}
        shape["model__network__init_args__dropout"] = 0.0
        path = write(place / "c.yaml", tiny(place / "run", **shape, **measured))
        log = place / "log.txt"
        arguments = ["fit", "-c", str(path), "--count-collectives"]
        assert not any(fork_server.run(*arguments, ranks=2, log=log)), log.read_text()
        runs[name] = place / "run"
    plain, measured = (read_lines(run / "metrics.jsonl") for run in runs.values())
    counts = [
        [line["per_step"] for line in lines if "per_step" in line] for lines in (plain, measured)
    ]
    assert counts[0] == counts[1]
    assert losses(runs["plain"]) == losses(runs["measured"])
    first = next(line for line in measured if "noise/trace" in line)
    settings = load_settings(tmp_path / "measured" / "c.yaml")
    expected = by_hand(settings)
    assert [first["noise/gradient_squared"], first["noise/trace"]] == pytest.approx(
        expected, rel=1e-4
    )


def by_hand(settings: Any) -> tuple[float, float]:
    """Of step 1: the mean of the squared norms of both ranks, and that of the mean gradient."""
    from llm_train.model.network import initialise

    network = settings.task.network_config.build()
    initialise(network, settings.seed)
    tokens = torch.from_numpy(settings.data.source.train_windows(16, settings.seed).batch(range(4)))
    gradients = []
    for part_ in tokens.long().split(2):
        sums = network(part_[:, :-1], partial(settings.task.loss, targets=part_[:, 1:]))
        (sums.objective / 32).backward()
        gradients.append(nn.utils.parameters_to_vector(p.grad for p in network.parameters()))
        network.zero_grad()
    small = sum(float(g.double().square().sum()) for g in gradients) / 2
    big = float((sum(gradients) / 2).double().square().sum())  # type: ignore[call-overload]
    return estimates(small, big, 32, 64)


def test_a_resume_goes_on_with_open_sums_and_averages(tmp_path: Path) -> None:
    """Log points lie at 4 and 8, the checkpoint at 6."""
    config = tiny(
        tmp_path / "run",
        steps=8,
        trainer__log_every_n_steps=4,
        checkpoint__every="6 steps",
        **MEASURED,
    )
    path = write(tmp_path / "c.yaml", config)
    build(load_settings(path)).fit()
    whole = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    resume = str(tmp_path / "run" / "checkpoints" / "step-00000006")
    options = {"trainer.default_root_dir": str(tmp_path / "again")}
    build(load_settings(path, options=options), resume=resume).fit()
    again = read_metrics(tmp_path / "again" / "metrics.jsonl")[-1]
    noise = [name for name in whole if name.startswith("noise/")]
    assert len(noise) >= 2
    assert {name: again[name] for name in noise} == {name: whole[name] for name in noise}


def test_advice_names_the_critical_batch_and_what_a_larger_one_costs(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", tiny(tmp_path / "run", steps=20, **MEASURED))
    build(load_settings(path)).fit()
    points = [
        {"step": step, "noise/gradient_squared": 1 + 0.01 * (-1) ** step, "noise/trace": 128.0}
        for step in range(1, 21)
    ]
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"".join(map(encode, points)))
    said = advice(tmp_path / "run", 0.5)
    assert said["gradient noise scale"]["critical batch"].startswith("128 tokens")
    assert said["to the same loss"]["batch.tokens=512"] == "0.62 x the steps, 2.50 x the tokens"


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        ({"batch__tokens": 32}, "batch.tokens=32", "lower batch.per_device"),
        ({"trainer__strategy": "fsdp"}, "FSDP", "trainer.strategy=ddp"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    overrides: dict[str, Any], key: str, remedy: str, tmp_path: Path
) -> None:
    from llm_train import problems

    path = write(tmp_path / "c.yaml", tiny(tmp_path / "run", **overrides, **MEASURED))
    (found,) = problems(load_settings(path))
    assert key in found
    assert remedy in found


def test_a_refused_setting_is_named_once(tmp_path: Path) -> None:
    callbacks = [part("NoiseScale", every=0)]
    path = write(tmp_path / "c.yaml", tiny(tmp_path / "run", trainer__callbacks=callbacks))
    with pytest.raises(ConfigError, match=r"^trainer\.callbacks\[0\]\.init_args\.every=0 must"):
        load_settings(path)
