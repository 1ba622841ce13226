"""Every rule of the configuration is tested by its exact message."""

from dataclasses import replace

import pytest

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer
from llm_train.model.network.rotary_scaling.linear_scaling import LinearScaling
from llm_train.model.network.rotary_scaling.llama3 import Llama3

VALID = Transformer(vocab_size=23, layers=2, width=16, heads=4, kv_heads=2, max_sequence=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100, "heads": 3}, "width=100 is not a multiple of heads=3; nearest: 96 or 102"),
        ({"width": 2, "heads": 3}, "width=2 is not a multiple of heads=3; nearest: 6"),
        (
            {"width": 12, "heads": 6, "kv_heads": 4},
            "kv_heads=4 does not divide heads=6; use one of 1, 2, 3, 6, or 0 for as many as heads",
        ),
        (
            {"width": 15, "heads": 3, "kv_heads": 0},
            "width=15 / heads=3 gives 5 features a head, but positions=rotary turns pairs; "
            "make it even or use positions=learned",
        ),
        (
            {"positions": "learned", "rotary_base": 500000.0},
            "rotary_base=500000 has no effect with positions=learned; "
            "remove it or use positions=rotary",
        ),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"vocab_size": -5}, "vocab_size=-5 must be at least 1"),
        ({"pad_vocab_to": 0}, "pad_vocab_to=0 must be at least 1"),
        ({"mlp_width": -1}, "mlp_width=-1 must be at least 0 (0 derives it)"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"soft_cap": -30.0}, "soft_cap=-30.0 must be at least 0"),
        ({"norm_eps": 0.0}, "norm_eps=0 must be a finite number above 0"),
        ({"init_std": float("nan")}, "init_std=nan must be finite, at least 0"),
        ({"norm": "batchnorm"}, "norm='batchnorm' is not one of layernorm, rmsnorm, none"),
        (
            {"positions": "absolute"},
            "positions='absolute' is not one of none, sinusoidal, learned, rotary, alibi",
        ),
        (
            {"positions": "none", "rotary_scaling": Llama3()},
            "rotary_scaling=Llama3 has no effect with positions=none; "
            "remove it or use positions=rotary",
        ),
        (
            {"norm": "none", "norm_placement": "post"},
            "norm_placement=post has no effect with norm=none; remove it or choose a norm",
        ),
        (
            {"norm": "none", "norm_eps": 1e-6},
            "norm_eps=1e-06 has no effect with norm=none; remove it or choose a norm",
        ),
        (
            {"rotary_scaling": LinearScaling(factor=1.0)},
            "rotary_scaling=LinearScaling has no effect with factor=1; "
            "remove it or raise its factor",
        ),
        (
            {"norm_placement": "deepnorm", "residual_init": "zero"},
            "residual_init=zero has no effect with norm_placement=deepnorm, which has its own "
            "initial weights; remove it, or write init: {'*.down.weight': zero}",
        ),
        ({"embedding_scale": 0.0}, "embedding_scale=0 must be a finite number above 0"),
    ],
)
def test_faulty_configurations(changes, message):
    with pytest.raises(ConfigError) as caught:
        replace(VALID, **changes)
    assert str(caught.value) == message
