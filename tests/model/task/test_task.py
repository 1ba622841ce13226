"""The task equals plain PyTorch in what it minimises, divides by, clips and schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from llm_train.derived import Derived
from llm_train.model.construction import CompileUnit
from llm_train.model.loss import CausalLM, ChunkedCausalLM, Loss
from llm_train.model.network import Transformer, initialise
from llm_train.model.network.shadow import HasShadow
from llm_train.model.optimizer import AdamW
from llm_train.model.schedule import WarmupCosine
from llm_train.model.task import Task
from llm_train.trainer.callbacks import Metrics
from llm_train.trainer.strategy import SingleDevice
from llm_train.units import Batch, Duration, Scaling

VOCAB, SEQUENCE, STEPS, SEED = 31, 12, 4, 5
NETWORK = Transformer(vocab_size=VOCAB, layers=2, width=16, heads=2, max_sequence=SEQUENCE)
OPTIMIZER = AdamW(learning_rate=0.02)
SCHEDULE = WarmupCosine(warmup=Duration(2, "steps"))

pytestmark = pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")


class Masked(Task):
    """Ignores targets that are multiples of three, as a source with a mask would."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        tokens = batch.long()
        self.masked_targets = tokens[:, 1:].masked_fill(tokens[:, 1:] % 3 == 0, -100)
        return super().training_step(batch, batch_idx)

    def forward(self, inputs: Tensor, targets: Tensor, documents: Any = None) -> Any:
        return super().forward(inputs, self.masked_targets, documents)


def data(per_device: int) -> Tensor:
    tokens = torch.randint(
        VOCAB, (STEPS * 8, SEQUENCE + 1), generator=torch.Generator().manual_seed(1)
    )
    return tokens.reshape(-1, per_device, SEQUENCE + 1)


def train(
    folder: Path,
    *,
    per_device: int,
    masked: bool,
    clip: float | None,
    scaling: Scaling = Scaling(),  # noqa: B008
    precision: Any = "32-true",
    compiled: CompileUnit = "none",
    loss: Loss = CausalLM(),  # noqa: B008
) -> tuple[Task, list[float], list[float]]:
    """Returns weights, learning rates and gradient norms after four steps of the Trainer."""
    derived = Derived.of(
        seed=SEED,
        batch=Batch(tokens=8 * SEQUENCE, sequence=SEQUENCE, per_device=per_device, scaling=scaling),
        budget=Duration(STEPS, "steps"),
        validate_every=Duration(0, "steps"),
        log_every=1,
        ranks=1,
    )
    task = (Masked if masked else Task)(NETWORK, OPTIMIZER, SCHEDULE, loss, compile=compiled)
    task.bind(derived, unmasked=not masked, token_bytes=None)
    seen = Seen()
    trainer = pl.Trainer(
        strategy=SingleDevice("cpu"),
        max_steps=STEPS,
        max_epochs=-1,
        accumulate_grad_batches=derived.accumulation,
        gradient_clip_val=clip,
        precision=precision,
        callbacks=[Metrics(), seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = DataLoader(data(per_device), batch_size=None)  # type: ignore[arg-type]
    trainer.fit(task, loader)
    return task, seen.rates, seen.norms


class Seen(pl.Callback):
    """Records what each log point published."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if len(self.rates) < trainer.global_step:
            self.rates.append(pl_module.run_state.latest["optimizer/lr"])
            self.norms.append(pl_module.run_state.latest["grad/norm"])


def plain(
    *, masked: bool, clip: float | None, factor: float = 1.0
) -> tuple[nn.Module, list[float], list[float]]:
    """Runs the same four steps as a loop over whole batches, with torch's own loss and clipping."""
    network = NETWORK.build()
    initialise(network, SEED)
    optimizer = OPTIMIZER.build(network.named_parameters())
    multiplier = SCHEDULE.build(total_steps=STEPS, tokens_per_step=8 * SEQUENCE)
    rates, norms = [], []
    for step, tokens in enumerate(data(8)):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * factor * multiplier(step)
        targets = tokens[:, 1:]
        if masked:
            targets = targets.masked_fill(targets % 3 == 0, -100)
        logits = network(tokens[:, :-1], lambda hidden, projection: projection.logits(hidden))
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        rates.append(optimizer.param_groups[0]["lr"])
        norms.append(norm.item())
    return network, rates, norms


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("per_device", [8, 4, 1])
def test_a_step_is_the_mean_over_the_valid_targets_of_the_whole_batch(
    per_device: int, clip: float | None, masked: bool, tmp_path: Path
) -> None:
    """This holds for any accumulation: micro-batches have different numbers of valid targets."""
    task, rates, norms = train(tmp_path, per_device=per_device, masked=masked, clip=clip)
    network, expected_rates, expected_norms = plain(masked=masked, clip=clip)
    assert rates == pytest.approx(expected_rates, rel=1e-12)
    assert norms == pytest.approx(expected_norms, rel=2e-5)
    assert min(expected_norms) > 0.5  # so that clipping has an effect
    for (name, mine), theirs in zip(
        task.network.named_parameters(), network.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5, msg=name)


def test_batch_scaling_multiplies_the_learning_rate(tmp_path: Path) -> None:
    scaling = Scaling(rule="sqrt", reference_tokens=2 * SEQUENCE)
    _, rates, _ = train(tmp_path, per_device=8, masked=False, clip=None, scaling=scaling)
    _, expected, _ = plain(masked=False, clip=None, factor=2.0)
    assert rates == pytest.approx(expected, rel=1e-12)


def test_gradients_do_not_outlive_the_update(tmp_path: Path) -> None:
    task, _, _ = train(tmp_path, per_device=4, masked=False, clip=1.0)
    assert all(parameter.grad is None for parameter in task.network.parameters())


def test_shadows_follow_the_weights(tmp_path: Path) -> None:
    """A shadow that missed an update would train another network without a word."""
    task, *_ = train(tmp_path, per_device=4, masked=False, clip=1.0, precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16):  # whoever calls the network
        task.network(data(4)[0][:, :-1], lambda *_: None)
    layers = [module for module in task.network.modules() if isinstance(module, HasShadow)]
    initial = NETWORK.build()
    initialise(initial, SEED)
    before = [module for module in initial.modules() if isinstance(module, HasShadow)]
    for layer, untrained in zip(layers, before, strict=True):
        assert layer.shadow is not None
        assert torch.equal(layer.shadow, layer.weight.bfloat16())
        assert not torch.equal(layer.shadow, untrained.weight.bfloat16())


def test_full_precision_needs_no_shadows(tmp_path: Path) -> None:
    task, *_ = train(tmp_path, per_device=4, masked=False, clip=1.0)
    assert all(m.shadow is None for m in task.network.modules() if isinstance(m, HasShadow))


@pytest.mark.slow
# torch's own compiler calls torch.jit functions that torch deprecates, reads its inputs' grad, and
# makes an instance of an autograd function while it traces it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.filterwarnings("ignore:.*The .grad attribute of a Tensor that is not a leaf.*")
@pytest.mark.parametrize("loss", [CausalLM(), ChunkedCausalLM(chunk_tokens=24)])
@pytest.mark.parametrize("compiled", ["blocks", "network"])
def test_compiled_training_is_the_same_training(
    compiled: CompileUnit, loss: Loss, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    found = {}
    for unit in ("none", compiled):
        torch._dynamo.utils.counters.clear()
        task, _, norms = train(
            tmp_path, per_device=4, masked=False, clip=1.0, compiled=unit, loss=loss
        )
        found[unit] = ([p.detach() for p in task.network.parameters()], norms)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert (graphs > 0) == (unit != "none")  # it was compiled
    torch.testing.assert_close(found[compiled][0], found["none"][0], rtol=1e-4, atol=1e-5)
    assert found[compiled][1] == pytest.approx(found["none"][1], rel=1e-4)
