"""Decay groups equal a list written by hand."""

import pytest
import torch
from torch import nn

from llm_train.errors import ConfigError
from llm_train.model.optimizer import AdamW, decay_groups


class Tiny(nn.Module):
    """An embedding tied to the head, one block, and a final norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"norm": nn.LayerNorm(4), "up": nn.Linear(4, 6)})]
        )
        self.norm = nn.LayerNorm(4, bias=False)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


def names(group):
    return [name for name, _ in group["params"]]


def test_the_groups_are_the_ones_written_by_hand():
    decay, rest = decay_groups(Tiny().named_parameters(), 0.1)
    assert names(decay) == ["embedding.weight", "blocks.0.up.weight"]
    assert names(rest) == [
        "blocks.0.norm.weight",
        "blocks.0.norm.bias",
        "blocks.0.up.bias",
        "norm.weight",
    ]
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_tied_parameters_come_once_and_frozen_ones_not_at_all():
    model = Tiny()
    model.norm.requires_grad_(False)
    groups = decay_groups(model.named_parameters(remove_duplicate=False), 0.1)
    listed = [name for group in groups for name in names(group)]
    assert "head.weight" not in listed
    assert "norm.weight" not in listed
    assert len(listed) == len(set(listed)) == 5


def test_a_partitioned_parameter_is_judged_by_its_true_shape():
    # DeepSpeed's ZeRO-3 leaves an empty vector behind, with the shape alongside.
    matrix = nn.Parameter(torch.empty(0))
    matrix.ds_shape = torch.Size([4, 4])
    vector = nn.Parameter(torch.empty(0))
    vector.ds_shape = torch.Size([4])
    decay, rest = decay_groups([("matrix", matrix), ("vector", vector)], 0.1)
    assert names(decay) == ["matrix"]
    assert names(rest) == ["vector"]


def test_an_empty_group_is_left_out_and_an_empty_model_refused():
    (only,) = decay_groups([("bias", nn.Parameter(torch.zeros(3)))], 0.1)
    assert only["weight_decay"] == 0.0
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    with pytest.raises(ConfigError, match="no parameter requires a gradient"):
        decay_groups([("bias", frozen)], 0.1)


def test_names_reach_the_state_dict_and_survive_loading():
    model = Tiny()
    optimizer = AdamW(learning_rate=0.1).build(model.named_parameters())
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["embedding.weight", "blocks.0.up.weight"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["param_names"] == ["embedding.weight", "blocks.0.up.weight"]
