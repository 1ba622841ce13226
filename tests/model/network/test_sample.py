"""In generation the cache changes nothing, filters equal a plain reference, and seeds decide."""

import itertools
from dataclasses import replace

import pytest
import torch

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer, generate, initialise
from llm_train.model.network.rotary_scaling.llama3 import Llama3
from llm_train.model.network.sample import restrict

BASE = Transformer(
    vocab_size=31, pad_vocab_to=8, layers=2, width=16, heads=4, max_sequence=24, init_std=0.5
)
PROMPT = torch.tensor([3, 1, 4, 1, 5])


def built(config):
    network = config.build()
    initialise(network, 5)
    return network


def logits(hidden, projection):
    return projection.logits(hidden)


OPTIONS = list(
    itertools.product(
        ("layernorm", "rmsnorm"), ("gelu", "swiglu", "relu2"), ("learned", "rotary"), (0, 2, 1)
    )
)
OPTIONS += [("rmsnorm", "geglu", positions, 2) for positions in ("none", "sinusoidal", "alibi")]


@pytest.mark.parametrize(("norm", "activation", "positions", "kv_heads"), OPTIONS)
def test_cached_logits_equal_uncached(norm, activation, positions, kv_heads):
    network = built(
        replace(
            BASE,
            norm=norm,
            activation=activation,
            positions=positions,
            kv_heads=kv_heads,
            qk_norm=kv_heads == 2,
            soft_cap=5.0 if kv_heads == 1 else 0.0,
            tied=kv_heads == 0,
            bias=norm == "layernorm",
        )
    ).eval()
    tokens = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(tokens, logits)
        cache, parts = network.new_cache(), []
        for piece in tokens.split([5, 1, 1, 3, 2], dim=1):  # prefill, steps, and later chunks
            parts.append(network(piece, logits, cache))
    assert cache[0].length == 12
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "temperature"),
    [*itertools.product(("learned", "rotary"), (0.0, 0.8)), ("alibi", 0.0), ("stretched", 0.0)],
)
def test_cached_tokens_equal_uncached_across_the_end_of_the_context(positions, temperature):
    config = replace(BASE, kv_heads=2)
    if positions == "stretched":
        config = replace(config, rotary_scaling=Llama3(factor=8.0, original_length=8))
    else:
        config = replace(config, positions=positions)
    network = built(config)
    common = {"max_new_tokens": 60, "temperature": temperature, "seed": 1}
    cached = list(generate(network, PROMPT, **common))
    network.new_cache = lambda: None  # so the whole context is read again for each token
    assert cached == list(generate(network, PROMPT, **common))
    assert len(cached) == 60
    assert max(cached) < 31


def test_a_full_context_is_read_again_from_its_second_half():
    network = built(BASE).eval()
    text = PROMPT.tolist() + list(generate(network, PROMPT, max_new_tokens=20, temperature=0.0))
    assert len(text) == 25  # one more than max_sequence, so the 26th token sees the last 12
    later = list(generate(network, PROMPT, max_new_tokens=22, temperature=0.0))[20:]
    fresh = generate(network, torch.tensor(text[-12:]), max_new_tokens=2, temperature=0.0)
    assert later == list(fresh)
    long = torch.arange(100) % 31
    assert list(generate(network, long, max_new_tokens=3, temperature=0.0)) == list(
        generate(network, long[-12:], max_new_tokens=3, temperature=0.0)
    )


def test_greedy_takes_the_likeliest():
    network = built(BASE).eval()
    context = PROMPT.tolist()
    for token in generate(network, PROMPT, max_new_tokens=8, temperature=0.0):
        with torch.no_grad():
            out = network(torch.tensor([context]), logits)[0, -1]
        assert token == int(out.argmax())
        context.append(token)


def plain_restrict(values, temperature, top_k, top_p):
    """Sorts, cuts and sums with Python floats."""
    scaled = [v / temperature for v in values]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    if top_k:
        order = order[:top_k]
    weights = {i: 2.718281828459045 ** (scaled[i] - scaled[order[0]]) for i in order}
    total = sum(weights.values())
    kept, reached = [], 0.0
    for i in order:
        if kept and reached >= top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    remaining = sum(weights[i] for i in kept)
    return [weights[i] / remaining if i in kept else 0.0 for i in range(len(values))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 20, 50])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.75, 1.0])
def test_restriction_equals_a_plain_reference(temperature, top_k, top_p):
    values = torch.randn(20, generator=torch.Generator().manual_seed(3))
    found = restrict(values, temperature=temperature, top_k=top_k, top_p=top_p)
    expected = torch.tensor(plain_restrict(values.tolist(), temperature, top_k, top_p))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert ((found > 0) == (expected > 0)).all()


def test_choices_follow_the_probabilities():
    network = built(replace(BASE, init_std=0.1)).eval()
    with torch.no_grad():
        out = network(PROMPT[None], logits)[0, -1]
    expected = restrict(out, temperature=1.0, top_k=4, top_p=1.0)
    seen = torch.zeros_like(expected)
    for seed in range(300):
        (token,) = generate(network, PROMPT, max_new_tokens=1, top_k=4, seed=seed)
        seen[token] += 1 / 300
    assert (seen[expected == 0] == 0).all()
    assert (seen - expected).abs().max() < 0.1  # more than three standard deviations of 0.029


def test_the_seed_decides_and_the_run_is_not_disturbed():
    network = built(replace(BASE, dropout=0.5)).train()
    before = torch.get_rng_state()
    first, again, other = (
        list(generate(network, PROMPT, max_new_tokens=15, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings(  # dynamo itself looks at the gradient of a block's input
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)
def test_compiled_blocks_generate_the_same():
    expected = list(generate(built(BASE), PROMPT, max_new_tokens=30))
    network = built(BASE)
    for block in network.blocks():
        block.compile(backend="eager", fullgraph=True)
    network(PROMPT[None], logits).sum()  # compiled for training shapes
    assert list(generate(network, PROMPT, max_new_tokens=30)) == expected


def test_stop_ends_the_text_and_is_not_part_of_it():
    network = built(BASE)
    text = list(generate(network, PROMPT, max_new_tokens=15, seed=1))
    stop = text[6]
    stopped = list(generate(network, PROMPT, max_new_tokens=15, seed=1, stop=stop))
    assert stopped == text[: text.index(stop)]
    assert list(generate(network, PROMPT, max_new_tokens=0)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, r"temperature=-1 must be at least 0"),
        ({"top_k": -1}, r"top_k=-1 must be at least 0"),
        ({"top_p": 0.0}, r"top_p=0 must be above 0 and at most 1"),
        ({"max_new_tokens": -1}, r"max_new_tokens=-1 must be at least 0"),
        ({"temperature": 0.0, "top_k": 5}, r"have no effect with temperature=0"),
        ({"prompt": torch.tensor([], dtype=torch.long)}, r"the prompt has shape \(0,\)"),
        ({"prompt": torch.zeros(1, 3, dtype=torch.long)}, r"the prompt has shape \(1, 3\)"),
    ],
)
def test_faulty_arguments_are_refused_before_anything_runs(changes, message):
    arguments = {"prompt": PROMPT, "max_new_tokens": 3} | changes
    with pytest.raises(ConfigError, match=message):
        generate(built(BASE), **arguments)


def test_a_network_without_a_cache_is_refused():
    with pytest.raises(ConfigError, match="Linear cannot generate; derive it from Cached"):
        generate(torch.nn.Linear(1, 1), PROMPT, max_new_tokens=1)
