"""The tokenizer that trained is the one that generates: prompts, ends and beginnings of texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import processors

from llm_train.cli import load_settings
from llm_train.data import (
    Characters,
    TailSplit,
    TextFiles,
    Tokenize,
    TokenizerFile,
    TrainBPE,
    prepare,
)
from llm_train.errors import ConfigError
from llm_train.run.pretrained import Pretrained
from llm_train.testing.configs import tiny, write
from tests.data.test_tokenizer import texts

TEXT = "the cat sat on the mat and the dog sat on the cat. " * 9
ENDS = {"gpt2": "<|endoftext|>", "llama3": "<|end_of_text|>", "named": "</s>", "roberta": "</s>"}
BEGINS = {"llama3": "<|begin_of_text|>", "roberta": "<s>"}


def pretrained(place: Path, tokenizer: object) -> Pretrained:
    (place / "text.txt").write_text(TEXT)
    recipe = Tokenize(
        corpus=TextFiles(paths=[str(place / "text.txt")]),
        tokenizer=tokenizer,
        split=TailSplit(fraction=0.2),
    )
    prepare(recipe, place / "tokens", progress=False)
    config = tiny(place / "run")
    config["data"] = {
        "source": {"class_path": "TokenShards", "init_args": {"path": str(place / "tokens")}}
    }
    config["model"]["network"]["init_args"]["vocab_size"] = 300
    settings = load_settings(["-c", str(write(place / "tiny.yaml", config))])
    (place / "tokenizer.json").write_bytes((place / "tokens/tokenizer.json").read_bytes())
    torch.manual_seed(0)
    network = settings.task.network_config.build().eval()
    return Pretrained(path=place, settings=settings, network=network)


@pytest.mark.parametrize("name", ENDS)
def test_prompts_and_ends_are_those_of_training(tmp_path: Path, name: str) -> None:
    made = TrainBPE(vocab_size=290).build(texts([TEXT]))
    end, begin = ENDS[name], BEGINS.get(name, "")
    made.add_special_tokens([token for token in (end, begin) if token])
    if begin:
        special = [(token, made.token_to_id(token)) for token in (begin, end)]
        single = f"{begin} $A" + (f" {end}" if name == "roberta" else "")
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    made.save(str(tmp_path / "made.json"))
    model = pretrained(tmp_path, TokenizerFile(path=str(tmp_path / "made.json"), end_of_text=end))
    assert model.end_of_text() == made.token_to_id(end)
    seen: list[torch.Tensor] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    list(model.generate("the cat", tokens=1))
    list(model.generate("", tokens=1))
    assert seen[0].flatten().tolist() == made.encode("the cat", add_special_tokens=False).ids
    assert seen[1].flatten().tolist() == [made.token_to_id(end)]


def test_characters_without_an_end(tmp_path: Path) -> None:
    model = pretrained(tmp_path, Characters())
    assert model.end_of_text() is None
    with pytest.raises(ConfigError, match="give a --prompt"):
        list(model.generate("", tokens=1))
    with pytest.raises(ConfigError, match=r"'Z'.*characters that its corpus had"):
        list(model.generate("Z", tokens=1))
