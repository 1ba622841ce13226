"""What a few small tensors show of an optimizer is what training would show."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from llm_train.discovery import concrete
from llm_train.model.optimizer import (
    SGLD,
    AdamW,
    Grouped,
    LowBitAdamW,
    Optimizer,
    TorchOptimizer,
)
from llm_train.model.optimizer.probe import Probe
from llm_train.testing.command import refused
from llm_train.testing.configs import part, tiny, write

# LowBitAdamW is compiled.
OWN = [
    kind
    for kind in concrete(Optimizer)  # type: ignore[type-abstract]
    if kind not in (TorchOptimizer, Grouped, LowBitAdamW)
]
ARGUMENTS = {SGLD: {"temperature": 1e-9}}


def asked(kind: Any, **arguments: Any) -> Probe:
    return Probe(TorchOptimizer(optimizer=lambda p: kind(p, **{"lr": 0.01} | arguments)).build)


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_our_own_promise_no_more_than_is_true(kind: type[AdamW]) -> None:
    config = kind(learning_rate=0.01, **ARGUMENTS.get(kind, {}))
    probe, traits = Probe(config.build), config.traits
    assert (probe.trains, probe.resumed, probe.sharded) == ("", "", "")
    assert not (traits.flat_fragments and probe.fragments)
    assert not (traits.one_by_one and probe.alone)


class Norms(optim.SGD):
    """Divides by the norm of all gradients, and keeps a count nowhere but in itself."""

    count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.count += 1
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] / self.count * p.grad / norm


OTHERS = "its updates would be others"
# Torch 2.11 makes its state at once, for the tensors that it has then, and for no others later.
ADAGRAD = "KeyError: 'sum'" if torch.__version__ < (2, 13) else ""


@pytest.mark.parametrize(
    ("kind", "fragments", "alone", "resumed"),
    [
        (optim.SGD, "", "", ""),
        (optim.Adagrad, ADAGRAD, "", ""),
        (optim.Rprop, "", "", ""),
        (optim.Adafactor, OTHERS, "", ""),
        (Norms, OTHERS, OTHERS, OTHERS),
    ],
)
def test_answers(kind: Any, fragments: str, alone: str, resumed: str) -> None:
    before = torch.get_rng_state()
    probe = asked(kind)
    assert (probe.fragments, probe.alone, probe.resumed) == (fragments, alone, resumed)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "arguments", "question", "answer"),
    [
        ("Lamb", {}, "fragments", OTHERS),
        ("Lion", {}, "fragments", ""),
        ("AdaBelief", {}, "alone", OTHERS),  # its count of steps belongs to the group
        ("Prodigy", {"lr": 1.0}, "fragments", OTHERS),
        ("Adan", {}, "sharded", ""),  # multi-tensor kernels left out
        ("SOAP", {}, "resumed", "its GG is neither a tensor nor a number"),
        ("SophiaH", {}, "trains", "RuntimeError: element 0 of tensors does not require grad"),
    ],
)
def test_answers_of_a_library(
    name: str, arguments: dict[str, Any], question: str, answer: str
) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    found = getattr(asked(getattr(library, name), **arguments), question)
    assert found.startswith(answer) if answer else not found


@pytest.mark.parametrize(
    ("kind", "strategy", "message"),
    [
        ("torch.optim.SparseAdam", "single", "cannot update weights from gradients alone"),
        ("torch.optim.Adafactor", "zero2", "needs whole matrices, and ZeRO flattens them; set"),
        ("torch.optim.Rprop", "fsdp", "cannot update the shards of FSDP"),
        ("pytorch_optimizer.Lamb", "zero1", "needs whole matrices"),
        ("pytorch_optimizer.AdaBelief", "zero3", "ZeRO's stage 3 each group by itself"),
        ("pytorch_optimizer.ScheduleFreeAdamW", "single", "other weights for evaluation"),
    ],
)
def test_check_refuses_in_one_line(kind: str, strategy: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip(kind.split(".")[0])
    optimizer = part("TorchOptimizer", optimizer=part(kind, lr=0.01))
    more = {"trainer__strategy": strategy, "trainer__devices": 1 if strategy == "single" else 2}
    config = tiny(tmp_path / "run", model__optimizer=optimizer, **more)
    (line,) = refused(
        "check",
        "--allow-import",
        "pytorch_optimizer",
        "-c",
        str(write(tmp_path / "c.yaml", config)),
    )
    assert message in line
    assert "AdamW" in line.rpartition(";")[2]


def test_state_is_counted_where_an_update_reads_numbers() -> None:
    factored = TorchOptimizer(optimizer=partial(optim.Adafactor, lr=0.1))
    parameter = torch.empty(6, 4, device="meta")
    assert factored.state_bytes("weight", parameter) == 4 * (6 + 4) + 4
