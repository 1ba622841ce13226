"""One rank of test_workers.py: compares sharded training with unsharded training.

The launcher's environment says which rank this is; it exits with 0 when everything is equal.
"""

import copy

import torch
from torch import nn
from torch.distributed import destroy_process_group, get_rank, get_world_size, init_process_group
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llm_train.model.network import Transformer, initialise
from llm_train.model.optimizer import (
    LAMB,
    LARS,
    SGD,
    SGLD,
    AdamW,
    Lion,
    MuonAdamW,
    QuickProp,
    ScheduleFreeAdamW,
    decay_groups,
)

WIDTH = 9  # odd, so that the two ranks' shards differ in size
STEPS = 5


NETWORK = Transformer(
    vocab_size=11, layers=2, width=WIDTH, heads=3, max_sequence=6, positions="learned"
)


def built():
    network = NETWORK.build()
    initialise(network, 0)
    return network


def train(model, optimizer, ids):
    for _ in range(STEPS):
        logits = model(ids, lambda hidden, projection: projection.logits(hidden))
        nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(model, mesh):
    for block in model.blocks():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def compare(config, rank, mesh):
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(1))
    plain, sharded = built(), shard(built(), mesh)
    groups = decay_groups(sharded.named_parameters(), 0.1)
    assert [len(group["params"]) for group in groups] == [11, 5]
    reference = config.build(plain.named_parameters())
    optimizer = config.build(sharded.named_parameters())
    train(plain, reference, ids)
    train(sharded, optimizer, ids[2 * rank : 2 * rank + 2])

    for parameter, state in optimizer.state.items():
        for value in (value for value in state.values() if isinstance(value, torch.Tensor)):
            assert value.shape in (parameter.shape, torch.Size([]))
            assert value.ndim == 0 or value.placements == parameter.placements

    # A checkpoint gathers everything; a second sharded network loads it and trains on.
    options = StateDictOptions(full_state_dict=True)
    # The state is copied, because AdamW's step counter in it is the live one.
    saved = copy.deepcopy(get_optimizer_state_dict(sharded, optimizer, options=options))
    copied = shard(built(), mesh)
    with torch.no_grad():
        for target, source in zip(copied.parameters(), sharded.parameters(), strict=True):
            target.copy_(source)
    resumed = config.build(copied.named_parameters())
    set_optimizer_state_dict(copied, resumed, saved, options=options)

    for model, its_optimizer in ((plain, reference), (sharded, optimizer), (copied, resumed)):
        train(model, its_optimizer, ids if model is plain else ids[2 * rank : 2 * rank + 2])
    for a, b, c in zip(plain.parameters(), sharded.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(whole(b), a, rtol=1e-5, atol=1e-5)
        assert torch.equal(whole(b), whole(c))


def compare_noise(rank, mesh):
    """SGLD keeps no tensors, without which torch's distributed state dict cannot be loaded."""
    config = SGLD(learning_rate=0.1, temperature=1e-4)
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(1))
    plain, sharded = built(), shard(built(), mesh)
    train(plain, config.build(plain.named_parameters()), ids)
    train(sharded, config.build(sharded.named_parameters()), ids[2 * rank : 2 * rank + 2])
    for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(whole(b), a, rtol=1e-5, atol=1e-5)


def main():
    init_process_group("gloo")
    rank, mesh = get_rank(), init_device_mesh("cpu", (get_world_size(),))
    for config in (
        AdamW(learning_rate=0.01),
        MuonAdamW(learning_rate=0.01),
        LARS(learning_rate=0.5, trust=0.02, weight_decay=0.1),
        LAMB(learning_rate=0.01, weight_decay=0.1),
        Lion(learning_rate=0.001),
        QuickProp(learning_rate=0.01),
        ScheduleFreeAdamW(learning_rate=0.01),
        SGD(learning_rate=0.1, form="average", nesterov=True),
    ):
        compare(config, rank, mesh)
    compare_noise(rank, mesh)
    destroy_process_group()


if __name__ == "__main__":
    main()
