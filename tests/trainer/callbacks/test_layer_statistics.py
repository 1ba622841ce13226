"""Norms by layer against weights of checkpoints and a plain loop; training does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_train import build, load_settings, problems
from llm_train.testing.checkpoints import tensors_of
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

MEASURED = {"trainer__callbacks": [part("LayerStatistics", every=2)]}
SHAPE: dict[str, Any] = {"batch__per_device": 2, "checkpoint__every": "1 steps"}
SHAPE |= {"model__network__init_args__dropout": 0.0}


def trained(folder: Path, **overrides: Any) -> Path:
    config = tiny(folder / "run", steps=4, **{**SHAPE, **overrides})
    build(load_settings(write(folder / "c.yaml", config))).fit()
    return folder / "run"


def weights(run: Path, step: int) -> dict[str, Tensor]:
    found = tensors_of(run / "checkpoints" / f"step-{step:08d}")
    return {k.removeprefix("model."): v for k, v in found.items() if k.startswith("model.")}


def of_layer(tensors: dict[str, Tensor], layer: str) -> float:
    mine = [tensor.double() for name, tensor in tensors.items() if name.startswith(f"{layer}.")]
    return float(nn.utils.get_total_norm(mine))


def test_norms_are_those_of_the_weights_and_of_a_plain_step(tmp_path: Path) -> None:
    """Step 2 of a run: its weights after step 1 and 2, and its batch read by a plain loop."""
    (tmp_path / "plain").mkdir()
    run = trained(tmp_path, **MEASURED)
    assert losses(run) == losses(trained(tmp_path / "plain"))
    records = {r["step"]: r for r in read_metrics(run / "metrics.jsonl") if "train/loss" in r}
    assert [s for s, r in records.items() if any(k.startswith("layers/") for k in r)] == [2, 4]
    found = records[2]
    before, after = weights(run, 1), weights(run, 2)
    settings = load_settings(tmp_path / "c.yaml")
    network = settings.task.network_config.build()
    network.load_state_dict(before, strict=False)
    batch = settings.batch
    samples = range(batch.samples, 2 * batch.samples)
    source = settings.data.source.train_windows(batch.sequence, settings.seed)
    tokens = torch.from_numpy(source.batch(samples)).long()
    outputs: list[Tensor] = []
    for block in network.blocks():
        block.register_forward_hook(lambda _, __, output: outputs.append(output[:2].detach()))
    logits = network(tokens[:, :-1], lambda hidden, head: head.logits(hidden))
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    for layer in ("embedding", "layers.0", "layers.1", "norm", "head"):
        moved = {name: after[name] - before[name] for name in after}
        expected = [of_layer(tensors, layer) for tensors in (gradients, after, moved)]
        norms = [found[f"layers/{layer}/{n}_norm"] for n in ("grad", "weight", "update")]
        assert norms == pytest.approx(expected, rel=2e-4)
    squares = [float(output.square().mean()) for output in outputs]
    rms = [found[f"layers/layers.{index}/output_rms"] ** 2 for index in range(2)]
    assert rms == pytest.approx(squares, rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_say_what_one_process_says(
    strategy: str, tmp_path: Path, fork_server: ForkServer
) -> None:
    alone = read_metrics(trained(tmp_path, **MEASURED) / "metrics.jsonl")
    config = tiny(tmp_path / "two", steps=4, trainer__strategy=strategy, **SHAPE, **MEASURED)
    path, log = write(tmp_path / "two.yaml", config), tmp_path / "log.txt"
    assert not any(fork_server.run("fit", "-c", str(path), ranks=2, log=log)), log.read_text()
    together = read_metrics(tmp_path / "two" / "metrics.jsonl")
    for record, other in zip(alone, together, strict=True):
        names = [name for name in record if name.startswith("layers/")]
        norms = [name for name in names if not name.endswith("rms")]  # those are of one batch each
        assert [other[n] for n in norms] == pytest.approx([record[n] for n in norms], rel=1e-4)
        assert set(names) <= set(other)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"trainer__log_every_n_steps": 3}, "write 3"),
        ({"trainer__strategy": "zero1"}, "ZeRO"),
        ({"model__update": "backward", "trainer__gradient_clip_val": None}, "model.update"),
    ],
)
def test_what_hides_gradients_is_refused(
    overrides: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "c.yaml", tiny(tmp_path / "run", **overrides, **MEASURED))
    assert any(
        named in line and "LayerStatistics" in line for line in problems(load_settings(path))
    )
