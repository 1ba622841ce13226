"""Networks of ours opened by transformers, and networks of theirs opened here, both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from llm_train.errors import ConfigError, LLMTrainError
from llm_train.exchange.families import families, fitting
from llm_train.exchange.outgoing import Export, Form
from llm_train.exchange.warm_start import WarmStart
from llm_train.exchange.weights import CheckpointWeights, open_folder
from llm_train.model.network import Transformer, initialise
from llm_train.model.network.base import LanguageModel
from llm_train.runtime import yaml12

transformers = pytest.importorskip("transformers")

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"layers": 2, "heads": 4, "width": 32, "vocab_size": 97, "max_sequence": 256}
SMALL |= {"dropout": 0.0}


class InMemory(CheckpointWeights):
    """Parameters of a network that no file holds."""

    def __init__(self, network: LanguageModel, rows: int) -> None:
        super().__init__(Path())
        self.tensors = {n: p.detach() for n, p in network.named_parameters()}
        self.rows = rows

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def built(config: Transformer) -> LanguageModel:
    """With weights that all differ, of norms and biases, too."""
    network = config.build()
    initialise(network, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        for table in (network.embedding, network.head):
            table.weight[config.vocab_size :] = 0.0
    return network.eval()


def export(
    config: Transformer, out: Path, *, tokenizer: str = "", boundary: str = "", **options: Any
) -> Any:
    network = built(config)
    form = Form(shard_bytes=20_000, **options)
    weights = InMemory(network, config.vocab_size)
    task = Export(
        weights=weights, network=config, tokenizer=tokenizer, boundary=boundary, form=form
    )
    return task.write(out, "run", {})


def scaling(name: str, **init_args: Any) -> Any:
    from llm_train.model.network import rotary_scaling

    kinds = {kind.__name__: kind for kind in rotary_scaling.RotaryScaling.__subclasses__()}
    return kinds[name](**init_args)


def preset(name: str) -> Transformer:
    """The network of a shipped configuration, smaller."""
    config = yaml12.load((CONFIGS / f"{name}.yaml").read_text())
    given = config["model"]["network"]["init_args"]
    if "rotary_scaling" in given:
        wanted = given["rotary_scaling"]
        given["rotary_scaling"] = scaling(wanted["class_path"], **wanted["init_args"])
    smaller = {"kv_heads": 2} if given.get("kv_heads") else {}
    smaller |= {"mlp_width": 64} if given.get("mlp_width") else {}
    return Transformer(**{**given, **SMALL, **smaller})


SANDWICH = {"norm_placement": "sandwich", "activation": "geglu", "embedding_scale": 32**0.5}
LAYERNORM = {"norm": "layernorm", "bias": True}
EXPORTED = {
    "gpt2-124m": (preset("gpt2-124m"), "gpt2"),
    "gpt2-350m": (preset("gpt2-350m"), "gpt2"),
    "gpt2-774m": (preset("gpt2-774m"), "gpt2"),
    "gpt2-1.5b": (preset("gpt2-1.5b"), "gpt2"),
    "llama-1b": (preset("llama-1b"), "llama"),
    "llama-3b": (preset("llama-3b"), "llama"),
    "llama-8b": (preset("llama-8b"), "llama"),
    "biases": (Transformer(**SMALL, bias=True, activation="reglu2"), "llama"),
    "linear": (Transformer(**SMALL, rotary_scaling=scaling("LinearScaling", factor=4.0)), "llama"),
    "ntk": (Transformer(**SMALL, rotary_scaling=scaling("NTKAware", factor=4.0)), "llama"),
    "yarn": (
        Transformer(**SMALL, rotary_scaling=scaling("YaRN", factor=4.0, original_length=64)),
        "llama",
    ),
    "qk-norm": (Transformer(**SMALL, qk_norm=True, kv_heads=2), "qwen3"),
    "relu2": (Transformer(**SMALL, activation="relu2", kv_heads=1), "arcee"),
    "relu2 and qk-norm": (Transformer(**SMALL, activation="relu2", qk_norm=True), "apertus"),
    "layernorm": (Transformer(**SMALL, **LAYERNORM, activation="relu2", kv_heads=2), "nemotron"),
    "sandwich": (Transformer(**SMALL, **SANDWICH, soft_cap=15.0, tied=True), "gemma2"),
    "sandwich and qk-norm": (
        Transformer(**SMALL, **SANDWICH, soft_cap=15.0, qk_norm=True),
        "gemma3_text",
    ),
}


ALIKE = {"gpt2-350m", "gpt2-774m", "gpt2-1.5b", "llama-3b"}  # as another one, at this width
SLOW = ALIKE | {"llama-8b", "biases", "linear", "ntk"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in EXPORTED]
)
def test_a_network_computes_the_same_in_transformers(tmp_path: Path, name: str) -> None:
    """The export itself compares; what it wrote is opened again here, as a network of ours."""
    config, family = EXPORTED[name]
    assert fitting(config).model_type == family
    proof = export(config, tmp_path / "out")
    assert proof.largest_difference <= 1e-5 * max(1.0, proof.largest_logit)
    assert proof.greedy_equal == proof.greedy_tokens >= 2 * 200
    again = open_folder(tmp_path / "out")
    for key, tensor in InMemory(built(config), config.vocab_size).tensors.items():
        real = tensor[: config.vocab_size] if key in ("embedding.weight", "head.weight") else tensor
        torch.testing.assert_close(again.read(key), real, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["quickstart", "modern-124m", "shakespeare-char-cpu"])
def test_a_network_that_fits_none_is_refused_with_the_feature(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"apertus has not soft_cap=15\.0"):
        export(preset(name), tmp_path / "out")
    assert not list(tmp_path.iterdir())


WIDENED = {
    "llama": Transformer(**SMALL, kv_heads=2, mlp_width=96),  # whose slabs get longer
    "gpt2": preset("gpt2-124m"),
    "qwen3": Transformer(**SMALL, qk_norm=True, tied=True, pad_vocab_to=64, mlp_width=64),
    "gemma2": Transformer(**SMALL, **SANDWICH, soft_cap=15.0, tied=True, mlp_width=64),
}


@pytest.mark.parametrize(
    ("name", "factor"), [*((name, 2) for name in WIDENED), ("llama", 3), ("qwen3", 3)]
)
@torch.no_grad()
def test_a_wider_network_computes_the_same_with_copies_that_part(
    tmp_path: Path, name: str, factor: int
) -> None:
    source = WIDENED[name]
    sizes = ("width", "heads", "kv_heads", "mlp_width")
    wide = replace(source, **{size: factor * getattr(source, size) for size in sizes})
    export(source, tmp_path / "out")
    network = wide.build()
    start = WarmStart(path=str(tmp_path / "out"), widen=factor).start(wide)
    initialise(network, 1, start=start)
    tokens = torch.arange(2 * 60).view(2, 60) % 97
    found, wanted = (
        module(tokens, lambda hidden, projection: projection.logits(hidden))[..., :97]
        for module in (network.eval(), built(source))
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    first, second, *_ = network.layers[0].attention.out.weight.chunk(factor)
    assert not torch.equal(first, second)


END = "<|endoftext|>"


def byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=[END], initial_alphabet=letters)
    tokenizer.train_from_iterator(["we don't know 12345 naïve words, do we?"] * 9, trainer)
    return tokenizer.to_str()


GGUF = {
    **{name: EXPORTED[name][0] for name in ("gpt2-124m", "qk-norm")},
    "grouped": Transformer(**SMALL, kv_heads=2, tied=True, pad_vocab_to=64, mlp_width=96),
    "untied gpt2": replace(preset("gpt2-124m"), tied=False, mlp_width=96),
}
GGUF = {name: replace(config, vocab_size=300) for name, config in GGUF.items()}


@pytest.mark.parametrize("name", GGUF)
def test_a_file_for_llama_cpp_computes_and_encodes_the_same(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The export itself compares with what transformers makes of it, and shows no bar of theirs."""
    pytest.importorskip("gguf")
    dtype = torch.bfloat16 if name == "grouped" else torch.float32
    words = {"tokenizer": byte_level(), "boundary": END}
    export(GGUF[name], tmp_path / "out", gguf=True, dtype=dtype, **words)
    proof = json.loads((tmp_path / "out" / "proof-gguf.json").read_text())
    assert proof["largest_difference"] <= proof["limit"]
    assert proof["greedy_equal"] == proof["greedy_tokens"] >= 2 * 200
    assert proof["text_equal"] is (True if find_spec("transformers.integrations.gguf") else None)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("change", ["add_token_merges", "add_tokenizer_pre"])
def test_a_file_for_llama_cpp_with_another_tokenizer_is_not_written(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a merge less, and one with the words of Llama 3."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("transformers.integrations.gguf", reason="older ones take other words")
    real = getattr(gguf.GGUFWriter, change)

    def changed(self: Any, given: Any) -> None:
        real(self, given[1:] if change == "add_token_merges" else "llama-bpe")

    monkeypatch.setattr(gguf.GGUFWriter, change, changed)
    with pytest.raises(LLMTrainError, match="the tokenizers give other ids"):
        export(GGUF["grouped"], tmp_path / "out", gguf=True, tokenizer=byte_level(), boundary=END)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (EXPORTED["yarn"][0], "rotary_scaling=YaRN"),
        (EXPORTED["biases"][0], "bias=True"),
        (EXPORTED["sandwich"][0], "gemma2 with activation=geglu"),
    ],
)
def test_what_llama_cpp_has_not_is_refused_with_the_feature(
    tmp_path: Path, config: Transformer, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        export(config, tmp_path / "out", gguf=True)
    assert not list(tmp_path.iterdir())


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["full_attention"] * 2}
GEMMA |= {"attn_logit_softcapping": None}
THEIRS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 97},
    "llama": {**SIZES, "rope_parameters": LLAMA3},
    "qwen3": {**SIZES, "head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {**SIZES, **GEMMA},
    "gemma3_text": {**SIZES, **GEMMA, "final_logit_softcapping": 30.0},
    "nemotron": {**SIZES, "partial_rotary_factor": 1.0, "attention_bias": True, "mlp_bias": True},
}


def theirs(kind: str, folder: Path, **options: Any) -> Any:
    """A network of transformers with random weights, saved."""
    config = transformers.AutoConfig.for_model(kind, **{**THEIRS[kind], **options})
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", THEIRS)
@torch.no_grad()
def test_a_network_of_transformers_computes_the_same_here(tmp_path: Path, kind: str) -> None:
    model = theirs(kind, tmp_path / "theirs")
    weights = open_folder(tmp_path / "theirs")
    network = weights.network.build().eval()
    for name, parameter in network.named_parameters():
        parameter.copy_(weights.read(name))
    tokens = torch.arange(2 * 60).view(2, 60) % 97
    ours = network(tokens, lambda hidden, projection: projection.logits(hidden))
    torch.testing.assert_close(ours, model(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("llama", {"rope_parameters": {**LLAMA3, "rope_type": "dynamic"}}, "dynamic"),
        ("llama", {"head_dim": 16}, "head_dim=16"),
        ("gemma2", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50"),
        ("nemotron", {"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
    ],
)
def test_a_feature_that_is_not_known_here_is_named(
    tmp_path: Path, kind: str, options: dict[str, Any], named: str
) -> None:
    config = transformers.AutoConfig.for_model(kind, **{**THEIRS[kind], **options})
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=named):
        open_folder(tmp_path)


def test_scaling_by_yarn_has_its_usual_values_where_none_are_given(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    yarn["original_max_position_embeddings"] = 64
    theirs("llama", tmp_path, rope_parameters=yarn)
    assert open_folder(tmp_path).network.rotary_scaling == scaling(
        "YaRN", factor=4.0, original_length=64
    )


def test_the_type_of_a_matrix_is_that_of_its_file(tmp_path: Path) -> None:
    theirs("llama", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "bfloat16"}))
    assert {tensor.dtype for tensor in open_folder(tmp_path).like.values()} == {torch.float32}


YARN = {"rotary_scaling": scaling("YaRN", factor=4.0, original_length=64)}
CUSTOM = {
    **{name: preset(name) for name in ("quickstart", "modern-124m", "shakespeare-char-cpu")},
    "post, sinusoidal": Transformer(
        **SMALL, **LAYERNORM, norm_placement="post", positions="sinusoidal", activation="gelu_erf"
    ),
    "deepnorm, alibi": Transformer(
        **SMALL, norm_placement="deepnorm", positions="alibi", tied=True, kv_heads=2
    ),
    "peri, learned": Transformer(
        **SMALL, norm_placement="peri", positions="learned", qk_norm=True, pad_vocab_to=64
    ),
    "neither norms nor positions": Transformer(
        **SMALL, norm="none", positions="none", activation="leaky_reglu", bias=True
    ),
    "yarn and a cap": Transformer(**SMALL, **YARN, soft_cap=9.0, embedding_scale=3.0),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in {"modern-124m", "shakespeare-char-cpu", "yarn and a cap"}
        else name
        for name in CUSTOM
    ],
)
def test_any_network_computes_the_same_with_its_own_code(tmp_path: Path, name: str) -> None:
    """Texts of two lengths in one batch are continued as each alone, with a cache or without."""
    proof = export(CUSTOM[name], tmp_path / "out", custom=True)
    assert proof.opened_as == "LLMTrainForCausalLM"
    assert proof.greedy_equal == proof.greedy_tokens >= 2 * 200
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, local_files_only=True
    )
    long, short = torch.arange(1, 9)[None], torch.arange(3, 7)[None]
    padded = torch.cat([long, torch.cat([torch.zeros_like(short), short], 1)])
    given = torch.ones_like(padded)
    given[1, :4] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    alone = [model.generate(text, **options, use_cache=False)[0, -12:] for text in (long, short)]
    found = model.generate(padded, attention_mask=given, **options)[:, -12:]
    assert torch.equal(found, torch.stack(alone))
    assert model(long, labels=long).loss.isfinite()


def test_every_architecture_was_tried() -> None:
    tried = {family for _, family in EXPORTED.values()}
    assert tried == {family.model_type for family in families()}
