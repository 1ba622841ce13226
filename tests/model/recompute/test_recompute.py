"""Every policy gives the same gradients to the bit, keeps fewer bytes, and changes no names."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy

from llm_train.errors import ConfigError
from llm_train.model.recompute import EveryBlock, EveryNth, NoRecompute, Selective
from llm_train.model.recompute.selective import _policy
from llm_train.plan.operators import saved_bytes

B, T, D, HEADS, LAYERS = 2, 16, 32, 4, 4


class Block(nn.Module):
    """A Pre-LN block with dropout in three places."""

    def __init__(self, attention_dropout=0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.attention_dropout = attention_dropout
        self.calls = 0

    def forward(self, x, *, cache=None):
        self.calls += 1
        q, k, v = self.qkv(self.norm1(x)).view(B, -1, 3, HEADS, D // HEADS).unbind(2)
        if cache is not None:
            cache.append(k)
        p = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, dropout_p=p
        )
        mixed = self.out(mixed.transpose(1, 2).reshape(x.shape))
        x = x + F.dropout(mixed, 0.2, self.training)
        hidden = F.dropout(F.gelu(self.up(self.norm2(x))), 0.2, self.training)
        return x + F.dropout(self.down(hidden), 0.2, self.training)


class Stack(nn.Module):
    def __init__(self, attention_dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, D)
        self.layers = nn.ModuleList(Block(attention_dropout) for _ in range(LAYERS))

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.layers:
            x = block(x)
        return x


IDS = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(1))
POLICIES = [EveryBlock(), EveryNth(n=1), EveryNth(n=2), EveryNth(n=3), Selective()]
POLICIES += [Selective(save=("aten.mm", "aten.addmm.default"))]


def name(policy):
    return repr(policy)[:24]


def built(policy, attention_dropout=0.0):
    model = Stack(attention_dropout)
    policy.apply(list(model.layers))
    return model


def gradients(model):
    torch.manual_seed(7)
    output = model(IDS)
    output.square().mean().backward()
    return [output.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
@pytest.mark.parametrize("policy", POLICIES, ids=name)
def test_output_and_gradients_are_bitwise_those_of_none(policy, attention_dropout):
    expected = gradients(built(NoRecompute(), attention_dropout))
    for a, b in zip(gradients(built(policy, attention_dropout)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("policy", POLICIES, ids=name)
def test_names_types_and_state_stay(policy):
    plain, changed = Stack(), built(policy)
    assert [name for name, _ in changed.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    assert [type(m) for m in changed.modules()] == [type(m) for m in plain.modules()]
    plain.load_state_dict(changed.state_dict())


def test_saved_bytes_are_ordered_as_theory_predicts():
    def kept(policy):
        return saved_bytes(built(policy), IDS)

    none, selective, second, every = map(
        kept, [NoRecompute(), Selective(), EveryNth(n=2), EveryBlock()]
    )
    assert none > selective > every
    assert none > second > every
    # Without recomputation every block keeps the same bytes, so recomputing half of the blocks
    # gives the middle of the two ends.
    assert second == pytest.approx((none + every) / 2, rel=0.02)


def test_full_recomputation_keeps_one_activation_a_block():
    activation = B * T * D * 4
    kept = saved_bytes(built(EveryBlock()), IDS)
    # The random generator's state, about 5 KB a block, is kept to replay dropout.
    generator_state = torch.get_rng_state().numel() * LAYERS
    assert LAYERS * activation <= kept <= LAYERS * activation + generator_state + 1024


def test_saved_bytes_match_autograds_own_count_where_it_sees_everything():
    sizes = {}
    model = built(NoRecompute())
    outside = {p.untyped_storage().data_ptr() for p in model.parameters()}
    outside.add(IDS.untyped_storage().data_ptr())

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in outside:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(IDS)
    assert saved_bytes(model, IDS) == sum(sizes.values())
    assert output.requires_grad


@pytest.mark.parametrize("kind", ["flash", "efficient", "cudnn"])
def test_attention_with_dropout_is_recomputed_and_without_is_kept(kind):
    # These operators run only on CUDA, so the test covers the decision and not the run.
    overload = getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_attention").default
    policy = _policy(frozenset([overload]))
    position = [a.name for a in overload._schema.arguments].index("dropout_p")
    others = [None] * position
    assert policy(None, overload, *others) == CheckpointPolicy.MUST_SAVE
    assert policy(None, overload, *others, 0.0) == CheckpointPolicy.MUST_SAVE
    assert policy(None, overload, *others, 0.1) == CheckpointPolicy.PREFER_RECOMPUTE
    assert policy(None, overload, *others, dropout_p=0.1) == CheckpointPolicy.PREFER_RECOMPUTE


def test_a_block_runs_twice_in_training_and_once_otherwise():
    model = built(EveryNth(n=2))
    model(IDS).sum().backward()
    assert [block.calls for block in model.layers] == [2, 1, 2, 1]
    with torch.no_grad():
        model(IDS)
    assert [block.calls for block in model.layers] == [3, 2, 3, 2]
    model.eval()
    model(IDS).sum().backward()
    assert [block.calls for block in model.layers] == [4, 3, 4, 3]


def test_keyword_arguments_pass_through():
    block = built(EveryBlock()).layers[0].eval()
    cache = []
    x = torch.randn(B, T, D)
    torch.testing.assert_close(block(x, cache=cache), Stack().layers[0].eval()(x))
    assert len(cache) == 1


def test_a_deep_copy_runs_its_own_weights():
    model = built(EveryBlock())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not copied(IDS).any()
    assert model(IDS).any()


def test_a_second_policy_on_the_same_block_is_a_bug():
    model = built(EveryBlock())
    with pytest.raises(AssertionError, match="already has a forward"):
        EveryBlock().apply(list(model.layers))


@pytest.mark.parametrize("policy", [EveryBlock(), EveryNth(n=2), Selective()], ids=name)
def test_sharding_afterwards_gives_the_same_gradients(policy, mesh):
    model = built(policy)
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in gradients(model)]
    for a, b in zip(sharded, gradients(built(NoRecompute())), strict=True):
        assert torch.equal(a, b)
    assert model.layers[0].calls == 2


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (
            "aten.admm",
            r"recompute\.save: 'aten\.admm' is not an operator of torch; nearest: .*aten\.addmm",
        ),
        ("addmm", r"'addmm' is not an operator of torch; nearest: .*aten\.addmm"),
        # The misspelling is the test; codespell:ignore-next-line
        ("aten.mm.defualt", r"'aten\.mm\.defualt' is not .*nearest: aten\.mm\.default"),
        ("flux.capacitor", r"'flux\.capacitor' is not an operator of torch; "),
        ("aten.native_dropout", r"'aten\.native_dropout' draws random numbers, .*leave it out"),
        ("aten.bernoulli_.float", r"'aten\.bernoulli_\.float' draws random numbers"),
    ],
)
def test_faulty_operator_names_are_refused(operator, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Selective(save=(operator,))
    assert "\n" not in str(caught.value)


def test_other_faulty_settings_are_refused():
    with pytest.raises(ConfigError, match=r"recompute\.n=0 must be at least 1; write 2"):
        EveryNth(n=0)
    with pytest.raises(ConfigError, match=r"recompute\.n=5 is more than the network's 4 blocks"):
        built(EveryNth(n=5))
    with pytest.raises(ConfigError, match=r"recompute\.save=\[\] keeps no operator"):
        Selective(save=())


@pytest.mark.slow
# torch's own compiler calls torch.jit functions that torch deprecates, and reads its inputs' grad
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("policy", [EveryBlock(), EveryNth(n=2), Selective()], ids=name)
def test_compiled_blocks_give_the_same_gradients(policy):
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        # Compiled dropout draws other numbers than eager's, so it is switched off here; the block
        # must stay in training mode to recompute.
        patch.setattr(F, "dropout", lambda x, *_: x)
        expected = gradients(built(NoRecompute()))
        model = built(policy)
        for block in model.layers:
            block.compile()
        for a, b in zip(gradients(model), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in Stack().named_parameters()
    ]
