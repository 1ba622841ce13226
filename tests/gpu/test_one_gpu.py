"""One CUDA device: weights, precision, attention kernels, synchronisation, reported numbers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_train.model.loss import CausalLM
from llm_train.model.loss.chunked import add_product
from llm_train.model.network import Transformer, initialise, materialise
from llm_train.model.network.shadow import ShadowWeights
from llm_train.runtime.devices import device_named
from llm_train.testing.configs import part
from llm_train.trainer.logger.records import read_metrics

if TYPE_CHECKING:
    from tests.gpu.conftest import Runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Offloading waits by its nature: the host updates what the device computed.
QUIET: dict[str, str | dict[str, Any]] = {
    **{name: name for name in ("single", "ddp", "fsdp", "zero1", "zero2", "zero3")},
    "fsdp-kept": part("FSDP", reshard_after_forward=False),
}


def test_weights_do_not_depend_on_the_device() -> None:
    shape = Transformer(vocab_size=101, layers=2, width=32, heads=2, max_sequence=16)
    networks = []
    for device in ("cpu", "cuda"):
        with torch.device("meta"):
            network = shape.build()
        materialise(network, device)
        initialise(network, seed=3)
        networks.append(network)
    for (name, first), second in zip(
        networks[0].named_parameters(), networks[1].parameters(), strict=True
    ):
        assert torch.equal(first, second.cpu()), name


def test_mfu_and_peak_memory_are_reported_where_the_peak_is_known(runs: Runs) -> None:
    runs.configure("run")
    runs.train("run", ranks=0)
    records = read_metrics(runs.folder / "run" / "metrics.jsonl")
    last = [record for record in records if "train/loss" in record][-1]
    assert last["memory/peak_gib"] > 0
    if device_named(torch.cuda.get_device_name(0)):
        assert 0 < last["throughput/mfu"] < 1


@pytest.mark.parametrize("strategy", QUIET)
def test_no_synchronisation_between_log_points(strategy: str, runs: Runs) -> None:
    """torch's own detector raises at every call that waits for the device between log points."""
    settings = {"trainer__log_every_n_steps": 10, "checkpoint__every": "0 steps"}
    runs.configure("run", trainer__strategy=QUIET[strategy], **settings)
    but = ("--but", "deepspeed") if strategy.startswith("zero") else ()
    script = ("forbid_synchronisation.py", *but)
    done = runs.start("run", script=script, ranks=0 if strategy == "single" else 1)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs FP8 units",
)
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_float8_learns_as_bf16_does(recipe: str, runs: Runs) -> None:
    pytest.importorskip("torchao")
    found = {}
    for name in ("none", recipe):
        runs.configure(name, model__float8=name, model__compile="blocks")
        found[name] = list(runs.train(name, ranks=0).values())
    assert found[recipe][-1] == pytest.approx(found["none"][-1], rel=0.03)


def test_copies_of_weights_give_what_autocast_gives() -> None:
    shape = Transformer(vocab_size=101, layers=2, width=64, heads=2, max_sequence=16)
    tokens = torch.randint(101, (4, 17), device="cuda")
    found = []
    for copied in (False, True):
        network = shape.build().cuda()
        initialise(network, seed=3)
        if copied:
            ShadowWeights(network, torch.bfloat16)
        with torch.autocast("cuda", torch.bfloat16):
            sums = network(tokens[:, :-1], partial(CausalLM(), targets=tokens[:, 1:]))
        sums.objective.backward()
        found.append((sums.nats, [p.grad for p in network.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)


def test_products_are_added_in_float32() -> None:
    """A sum of bf16 products against float64; one that rounded each product would be 1e-3 off."""
    torch.manual_seed(0)
    total = torch.zeros(512, 64, device="cuda")
    exact = torch.zeros_like(total, dtype=torch.float64)
    for _ in range(3):
        grad, hidden = (torch.randn(256, n, device="cuda").bfloat16() for n in (512, 64))
        add_product(total, grad, hidden)
        exact += grad.double().t() @ hidden.double()
    assert (total.double() - exact).norm() < 1e-5 * exact.norm()
