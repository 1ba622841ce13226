"""The simulated step takes the same bytes as real tensors, for every preset a CPU can hold."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.utils._pytree import tree_leaves

from llm_train.cli.dispatch import load_settings
from llm_train.model.network.init import materialise
from llm_train.model.network.shadow import ShadowWeights, shadowed
from llm_train.model.optimizer import AdamW
from llm_train.model.recompute import EveryBlock, EveryNth, NoRecompute, Selective
from llm_train.plan import operators
from llm_train.plan.compiled import saving_of_a_block
from llm_train.plan.cost_model import weights_of
from llm_train.plan.operators import OperatorCounter, saved_bytes
from llm_train.plan.simulate import Case, Scaled, at_depth, autocast, default_dtype, simulate
from llm_train.settings import Settings
from llm_train.testing import configs
from llm_train.trainer.strategy import FSDP, MeshShape, SingleDevice
from llm_train.trainer.strategy.cost import Workload

ROOT = Path(__file__).parents[2]
POLICIES = [NoRecompute(), Selective(), EveryNth(n=2), EveryNth(n=3), EveryBlock()]
LARGE = ["shakespeare-char-cpu", "shakespeare-char-gpu", "gpt2-124m", "modern-124m", "gpt2-350m"]
PRESETS = [
    ("quickstart", 128, 2),
    *(pytest.param(name, 128, 1, marks=pytest.mark.slow) for name in LARGE),
]


COLLECTIVES = {
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_out": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
}


class SentCounter(OperatorCounter):
    """Counts the bytes of whole tensors that are gathered or reduced, too."""

    def _count(self, func: Any, args: tuple[Any, ...], results: list[Tensor]) -> None:
        super()._count(func, args, results)
        if kind := COLLECTIVES.get(func._schema.name.rpartition("::")[2]):
            names = [argument.name for argument in func._schema.arguments]
            group = dict(zip(names, args, strict=False))
            asked = group.get("process_group", group.get("group_name"))
            by_name = isinstance(asked, str)
            ranks = (_resolve_process_group if by_name else ProcessGroup.unbox)(asked).size()
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            whole = max(tensor.nbytes for tensor in tensors)
            if kind == "all-gather" and len(tensors) == 1:  # this form names its input alone
                whole *= ranks
            self.found[f"sent {kind} {ranks}"] += whole


def preset(name: str) -> Settings:
    return load_settings(["-c", str(ROOT / f"configs/{name}.yaml")])


def case_of(settings: Settings, policy: Any, precision: str, sequence: int, batch: int) -> Case:
    task = settings.task
    return Case(
        network=task.network_config,
        loss=task.loss,
        optimizer=task.optimizer_config,
        recompute=policy,
        precision=precision,
        sequence=sequence,
        micro_batch=batch,
    )


def deep(case: Case) -> Case:
    return replace(case, network=replace(case.network, layers=7))  # type: ignore[type-var]


def workload(case: Case) -> Workload:
    weights = weights_of(case.network)
    return Workload(weights=weights, optimizer=case.optimizer, precision=case.precision)


def measured(case: Case) -> dict[str, int]:
    """Runs the same step with real tensors and all blocks, on one device."""
    with default_dtype(case.precision):
        with torch.device("meta"):
            network = case.network.build()
        case.recompute.apply(network.blocks())
        materialise(network, "cpu")
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        if case.copies:
            ShadowWeights(network, torch.bfloat16)
        tokens = torch.zeros(case.micro_batch, case.sequence + 1, dtype=torch.int64)
        readout = partial(case.loss, targets=tokens[:, 1:])
        with autocast(case.precision):
            saved = saved_bytes(network, tokens[:, :-1], readout)
            sums = network(tokens[:, :-1], readout)
        sums.objective.backward()
        optimizer = case.optimizer.build(network.named_parameters())
        optimizer.step()
    parameters = list(network.parameters())
    states = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    return {
        "saved": saved,
        "parameters": sum(p.nbytes for p in parameters),
        "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
        "optimizer": sum(v.nbytes for v in states),
        "copies": sum(m.shadow.nbytes for m in shadowed(network) if m.shadow is not None),
    }


def assert_equal(case: Case) -> None:
    found, real = Scaled(case).at(case.micro_batch), measured(case)
    for part, size in real.items():
        assert found[part] == pytest.approx(size, rel=0.02), part
    formula = SingleDevice().state_bytes(workload(case), MeshShape())
    for part in ("parameters", "gradients", "optimizer", "copies"):
        assert getattr(formula, part) == pytest.approx(real[part], rel=0.02), part


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{type(p).__name__}{vars(p)}"[:12])
@pytest.mark.parametrize(("name", "sequence", "batch"), PRESETS)
def test_presets(name: str, sequence: int, batch: int, policy: Any) -> None:
    # This runs in fp32, because bf16 is emulated here; a sequence of 128 is enough for bytes.
    assert_equal(case_of(preset(name), policy, "32-true", sequence, batch))


@pytest.mark.parametrize(
    ("precision", "policy"),
    [
        ("bf16-mixed", NoRecompute()),
        ("bf16-true", EveryBlock()),
        pytest.param("bf16-mixed", EveryBlock(), marks=pytest.mark.slow),
        pytest.param("bf16-true", NoRecompute(), marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_low_precision(tmp_path: Path, precision: str, policy: Any) -> None:
    path = configs.write(tmp_path / "tiny.yaml", configs.tiny(tmp_path))
    settings = load_settings(["-c", str(path), "--model.network.init_args.dropout=0"])
    assert_equal(deep(case_of(settings, policy, precision, 16, 3)))


def test_depth_and_micro_batch_continue_a_line() -> None:
    case = deep(case_of(preset("quickstart"), EveryNth(n=2), "bf16-mixed", 64, 3))
    # A single sample needs a copy less here and there, so the bytes agree only roughly.
    assert Scaled(case).at(3) == pytest.approx(simulate(case), rel=0.03)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_compiled_block_keeps_less(positions: str) -> None:
    """Rotary tables are handed to every block, which keeps none of their bytes."""
    case = case_of(preset("quickstart"), NoRecompute(), "bf16-mixed", 64, 1)
    network: Any = case.network
    case = replace(case, network=replace(network, positions=positions))
    assert 0 < saving_of_a_block(case) < simulate(case)["saved"] / network.layers


@pytest.mark.parametrize(
    ("ranks", "strategy"),
    [
        (64, FSDP()),
        (8, FSDP(replicas=2, reshard_after_forward=False)),
        (6, FSDP(tensor=2)),
    ],
    ids=["sharded", "hybrid", "tensor"],
)
def test_shards_are_those_of_the_formula(
    ranks: int, strategy: FSDP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "OperatorCounter", SentCounter)
    settings, mesh = preset("quickstart"), strategy.mesh_shape(ranks)
    case = case_of(settings, NoRecompute(), "bf16-mixed", 128, 4)
    adamw = AdamW(learning_rate=1e-3)  # MuonAdamW gathers additional matrices
    case = replace(case, optimizer=adamw, micro_batches=2, strategy=strategy, mesh=mesh)
    found = at_depth(case)
    work = replace(workload(case), accumulation=2, activation=2 * 4 * 128 * 128)
    formula = strategy.state_bytes(work, mesh)
    for part in ("parameters", "gradients", "optimizer"):
        assert found[part] == pytest.approx(getattr(formula, part), rel=0.02), part
    sent = {key: size for key, size in found.items() if key.startswith("sent ") and size > 1e5}
    expected: dict[str, float] = {}
    for transfer in strategy.transfers(work, mesh):
        if transfer.ranks > 1:
            key = f"sent {transfer.kind} {transfer.ranks}"
            expected[key] = expected.get(key, 0.0) + transfer.whole
    assert sent == pytest.approx(expected, rel=0.1)
