"""Reading parameters and optimizer state executes nothing and silently loses nothing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from llm_train.checkpoint import dcp, tensors
from llm_train.errors import CheckpointError


def trained(width: int = 3) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(width, 4), nn.LayerNorm(4))
    network.register_buffer("kept", torch.arange(2.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(3):
        network(torch.randn(5, width)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network, optimizer


def test_round_trip_is_bitwise_and_keeps_configured_hyper_parameters(tmp_path: Path) -> None:
    network, optimizer = trained()
    dcp.write(tmp_path, tensors.state(network, optimizer))
    other = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    other.register_buffer("kept", torch.zeros(2))
    fresh = torch.optim.AdamW(other.parameters(), lr=0.7, weight_decay=0.3)
    tensors.load(tmp_path, other, fresh)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert optimizer.state[mine].keys() == fresh.state[theirs].keys()
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, fresh.state[theirs][key]), key
    assert fresh.param_groups[0]["lr"] == 0.7
    assert fresh.param_groups[0]["weight_decay"] == 0.3


def test_state_that_is_no_tensor_comes_back(tmp_path: Path) -> None:
    network, _ = trained()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    weight = network[0].weight
    optimizer.state[weight]["count"] = 7
    dcp.write(tmp_path, tensors.state(network, optimizer))
    optimizer.state.clear()
    tensors.load(tmp_path, network, optimizer)
    assert json.loads((tmp_path / "optimizer_scalars.json").read_text()) == {
        "0.weight": {"count": 7}
    }
    assert optimizer.state[weight]["count"] == 7
    assert set(optimizer.state[weight]) == {"count", "momentum_buffer"}


@pytest.mark.parametrize(("fused", "device"), [(True, "meta"), (None, "cpu")])
def test_a_step_counter_goes_where_the_kernel_reads_it(
    fused: bool | None, device: str, tmp_path: Path
) -> None:
    """Fused kernels read the counter on the parameter's device; the others read it on the host."""
    network, optimizer = trained()
    dcp.write(tmp_path, tensors.state(network, optimizer))
    stored = dcp.Reader(tmp_path).read_metadata().state_dict_metadata
    elsewhere = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).to("meta")
    other = torch.optim.AdamW(elsewhere.parameters())
    other.param_groups[0]["fused"] = fused
    tensors._allocate(elsewhere, other, stored)
    assert {values["step"].device.type for values in other.state.values()} == {device}
    assert {values["exp_avg"].device.type for values in other.state.values()} == {"meta"}


def test_other_shapes_and_names_are_refused(tmp_path: Path) -> None:
    network, optimizer = trained()
    dcp.write(tmp_path, tensors.state(network, optimizer))
    wider, _ = trained(width=5)
    with pytest.raises(
        CheckpointError, match=r"model.0.weight is \(4, 3\) there and \(4, 5\) here"
    ):
        tensors.load(tmp_path, wider, None)
    with pytest.raises(
        CheckpointError, match=r"8 differences: model.a.weight is absent .* use the configuration"
    ):
        tensors.load(tmp_path, nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.RMSNorm(4)}), None)
    with pytest.raises(CheckpointError, match=r"holds no \.metadata"):
        tensors.load(tmp_path / "nothing", network, None)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_hostile_metadata_runs_nothing(tmp_path: Path) -> None:
    network, optimizer = trained()
    dcp.write(tmp_path, tensors.state(network, optimizer))
    target = tmp_path / "written-by-a-pickle"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil(str(target))))
    with pytest.raises(CheckpointError, match=r"checkpoint metadata asks for _?io\.open"):
        tensors.load(tmp_path, network, None)
    assert not target.exists()
    # DCP would unpickle bytes that are stored under a key with whatever they ask for.
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata({"a": BytesStorageMetadata()})))
    with pytest.raises(CheckpointError, match=r"asks for .*BytesStorageMetadata"):
        dcp.read(tmp_path, {"a": torch.empty(1)})


def test_frozen_parameters_with_stored_state_are_named(tmp_path: Path) -> None:
    network, optimizer = trained()
    dcp.write(tmp_path, tensors.state(network, optimizer))
    only_norm = torch.optim.AdamW(network[1].parameters())
    with pytest.raises(
        CheckpointError, match=r"optimizer state for 0\.(weight|bias), which is frozen now"
    ):
        tensors.load(tmp_path, network, only_norm)
