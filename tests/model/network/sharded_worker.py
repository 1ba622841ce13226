"""One of two gloo ranks: shards on meta, materialises, initialises, trains a step, compares.

test_workers.py runs it; the launcher's environment says which rank this is.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from llm_train.model.network import Transformer, initialise, materialise

# 51 rows cannot be divided by two ranks, so rank 1 gets the smaller shard.
CONFIG = Transformer(
    vocab_size=51, layers=2, width=32, heads=4, kv_heads=2, max_sequence=16, qk_norm=True
)


def loss(network, tokens):
    def readout(hidden, projection):
        logits = projection.logits(hidden)
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )

    return network(tokens, readout)


def sharded(config, mesh, policy):
    with torch.device("meta"):
        network = config.build()
    for block in network.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    materialise(network, "cpu")
    with CommDebugMode() as communication:
        initialise(network, 7)
    assert communication.get_total_counts() == 0, communication.get_comm_counts()
    return network


def check(config, mesh):
    reference = config.build()
    initialise(reference, 7)
    tokens = torch.arange(24).view(2, 12) % config.vocab_size

    network = sharded(config, mesh, MixedPrecisionPolicy())
    expected = dict(reference.named_parameters())
    assert [n for n, _ in network.named_parameters()] == list(expected)
    for name, parameter in network.named_parameters():
        assert isinstance(parameter, DTensor), name
        assert torch.equal(parameter.full_tensor(), expected[name]), name
    found, plain = loss(network, tokens), loss(reference, tokens)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)
    found.backward()
    plain.backward()
    for name, parameter in network.named_parameters():
        gradient = parameter.grad.full_tensor()
        torch.testing.assert_close(gradient, expected[name].grad, rtol=1e-4, atol=1e-7, msg=name)

    seen = []
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    network = sharded(config, mesh, policy)
    network.layers[1].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    rough = loss(network, tokens)
    rough.backward()
    assert seen == [torch.bfloat16]
    if network.rotary is not None:
        assert network.rotary.table.dtype == torch.float32
        assert torch.equal(network.rotary.table, reference.rotary.table)
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())
    torch.testing.assert_close(rough, plain, rtol=0.01, atol=0)


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    check(CONFIG, mesh)
    init = {"*.qkv.weight": "orthogonal 0.1", "*.gate_up.weight": "deepnorm 0.2"}
    check(replace(CONFIG, tied=True, bias=True, pad_vocab_to=8, init=init), mesh)
    check(replace(CONFIG, positions="learned", norm="layernorm", activation="gelu"), mesh)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
