"""Hybrid sharding and tensor parallelism compute what one process computes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llm_train.errors import ConfigError
from llm_train.model.loss import CausalLM
from llm_train.model.network import Transformer
from llm_train.model.network.base import LanguageModel
from llm_train.testing.command import refused
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics
from llm_train.trainer.strategy.mesh import MeshShape
from llm_train.trainer.strategy.sharding import ROLES

STEPS = 6
KEYS = ("train/loss", "grad/norm", "val/loss")
# A vocabulary of 61 and a hidden width of 43 cannot be divided by 2.
DIVISIBLE = {
    "model__network__init_args__pad_vocab_to": 4,
    "model__network__init_args__mlp_width": 256,
}
GPT2 = {
    "model__network__init_args__positions": "learned",
    "model__network__init_args__tied": True,
    "model__network__init_args__norm": "layernorm",
    "model__network__init_args__bias": True,
    "model__network__init_args__activation": "gelu",
    "model__network__init_args__qk_norm": True,
    "model__loss__class_path": "ChunkedCausalLM",
}


def fsdp(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "FSDP", "init_args": arguments}


def config(run_dir: Path, **overrides: Any) -> dict[str, Any]:
    settings = {
        "model__network__init_args__dropout": 0.0,
        "checkpoint__every": "3 steps",
        "validate_every": "3 steps",
        # This is below every norm of this run, so that clipping acts on each step.
        "trainer__gradient_clip_val": 0.25,
        **DIVISIBLE,
        **overrides,
    }
    return tiny(run_dir, steps=STEPS, **settings)


def curves(run_dir: Path) -> dict[str, list[float]]:
    records = list(read_metrics(run_dir / "metrics.jsonl"))
    return {key: [r[key] for r in records if key in r] for key in KEYS}


def train(
    fork_server: ForkServer,
    folder: Path,
    strategy: Any,
    ranks: int,
    *options: str,
    **overrides: Any,
) -> dict[str, list[float]]:
    folder.mkdir(exist_ok=True)
    path = write(folder / "c.yaml", config(folder / "run", trainer__strategy=strategy, **overrides))
    log = folder / "log.txt"
    statuses = fork_server.run("fit", "-c", str(path), *options, ranks=ranks, log=log)
    assert set(statuses) == {0}, log.read_text()
    return curves(folder / "run")


@pytest.fixture(scope="module")
def alone(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(fork_server, folder, "single", 0)
    return folder / "run"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [
        # Two ranks that cut matrices are in the test below, for other networks.
        pytest.param(fsdp(tensor=2), 2, marks=pytest.mark.slow),
        (fsdp(replicas=2), 4),
        (fsdp(tensor=2), 4),
        pytest.param(fsdp(replicas=2, tensor=2), 4, marks=pytest.mark.slow),
        pytest.param("tp", 2, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_equals_one_process(
    strategy: Any, ranks: int, alone: Path, fork_server: ForkServer, tmp_path: Path
) -> None:
    found, expected = train(fork_server, tmp_path, strategy, ranks), curves(alone)
    assert [len(expected[key]) for key in KEYS] == [STEPS, STEPS, 2]
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key], rel=1e-5)
    assert min(expected["grad/norm"]) > 0.25  # clipping had an effect


@pytest.mark.distributed
@pytest.mark.parametrize(
    "overrides",
    [
        # Tied weights, biases, a table of positions, norms of heads and the chunked loss.
        GPT2,
        {"model__recompute__class_path": "Selective", "model__optimizer__class_path": "MuonAdamW"},
        # Norms around branches and of embeddings, other gates, weights and objectives.
        pytest.param(
            {
                "model__network__init_args__norm_placement": "peri",
                "model__network__init_args__activation": "geglu",
                "model__network__init_args__init": {"*.qkv.weight": "orthogonal 0.5"},
                "model__loss": {
                    "class_path": "Chunked",
                    "init_args": {"loss": {"class_path": "LabelSmoothing"}, "chunk_tokens": 8},
                },
            },
            marks=pytest.mark.slow,
        ),
        pytest.param({"model__compile": "blocks"}, marks=pytest.mark.slow),
    ],
    ids=["gpt2", "recompute-and-muon", "peri", "compile"],
)
def test_what_else_works_with_cut_matrices(
    overrides: dict[str, Any], fork_server: ForkServer, tmp_path: Path
) -> None:
    expected = train(fork_server, tmp_path / "alone", "single", 0, **overrides)
    found = train(fork_server, tmp_path / "cut", fsdp(tensor=2), 2, **overrides)
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key], rel=1e-5)


def test_every_parameter_has_a_role() -> None:
    shapes: list[dict[str, Any]] = [{}, {"positions": "learned", "norm": "layernorm"}]
    for more in shapes:
        network = Transformer(
            vocab_size=8, layers=1, width=8, heads=2, max_sequence=4, qk_norm=True, **more
        ).build()
        roles = network.tensor_roles()
        covered = {
            f"{path}.{name}"
            for path in roles
            for name, _ in network.get_submodule(path).named_parameters(recurse=False)
        }
        assert covered == {name for name, _ in network.named_parameters(remove_duplicate=False)}
        assert set(roles.values()) <= set(ROLES)


def test_a_network_that_says_nothing_cannot_be_cut() -> None:
    class Bare(LanguageModel):
        def blocks(self) -> list[nn.Module]:
            return []

        def initial(self, name: str) -> Any:
            raise KeyError(name)

        def forward(self, tokens: torch.Tensor, readout: Any) -> Any:
            return readout(tokens, partial(CausalLM(), targets=tokens))

    with pytest.raises(ConfigError, match="Bare does not say how its matrices may be cut"):
        Bare().tensor_roles()


def test_a_layout_names_products_that_divide() -> None:
    assert MeshShape.of(8, replicas=2, tensor=2) == MeshShape(replicas=2, shards=2, tensor=2)
    with pytest.raises(ConfigError, match="replicas=3 x tensor=1 = 3; use a product of 2 or 4"):
        MeshShape.of(8, replicas=3, tensor=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer__strategy": fsdp(tensor=3)}, "4 ranks are not a multiple of"),
        (
            {
                "trainer__strategy": fsdp(tensor=2),
                "model__network__init_args__positions": "alibi",
            },
            "positions=alibi; use rotary or learned, or tensor=1",
        ),
        ({"trainer__strategy": fsdp(replicas=0)}, "replicas=0 must be at least 1"),
        ({"trainer__strategy": fsdp(replicas=4)}, "replicas=4 leaves nothing to shard"),
        ({"trainer__strategy": "hsdp"}, "trainer.strategy=hsdp on one node is fsdp"),
        (
            {"trainer__strategy": fsdp(tensor=2), "model__float8": "rowwise"},
            "model.float8=rowwise does not work with tensor=2",
        ),
        (
            {"trainer__strategy": fsdp(tensor=4)},
            "tensor=4 does not divide model.network's kv_heads=2; use a divisor of both",
        ),
        (
            {"trainer__strategy": fsdp(tensor=4), "model__network__init_args__mlp_width": 128},
            "mlp_width=128; each part needs 64: make it a multiple of 256",
        ),
        (
            {"trainer__strategy": fsdp(tensor=2), "model__network__init_args__pad_vocab_to": 1},
            "tensor=2 does not divide the rows of the vocabulary (see pad_vocab_to)=61",
        ),
        (
            {"trainer__strategy": fsdp(tensor=2), "batch__sequence": 15, "batch__tokens": 120},
            "tensor=2 does not divide batch.sequence=15",
        ),
        ({"trainer__strategy": fsdp(offload=True)}, "offload=true has no effect on a CPU"),
        (
            {
                "trainer__strategy": fsdp(offload=True),
                "trainer__accelerator": "gpu",
                "model__optimizer__class_path": "MuonAdamW",
            },
            "model.optimizer=MuonAdamW cannot update on the host",
        ),
        (
            {
                "trainer__strategy": fsdp(offload=True),
                "trainer__accelerator": "gpu",
                "model__update": "backward",
            },
            "offload=true asks; write model.update=step",
        ),
    ],
)
def test_what_cannot_be_cut_is_one_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = config(tmp_path / "run", trainer__devices=4, **change)
    lines = refused("check", "-c", str(write(tmp_path / "c.yaml", settings)))
    assert [message in line for line in lines].count(True) == 1, lines
