"""Settings and text made by an enemy: refused in one line, in bounded time and memory.

A YAML tag that constructs, or a module whose name looks like one of ours, would leave a mark.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.command import run
from llm_train.testing.configs import part, tiny, write
from tests.chaos.harm import require_no_harm
from tests.chaos.trials import first

pytestmark = pytest.mark.chaos

TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/object/apply:builtins.open ['{mark}', w]",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {mark}']",
    "!!python/name:os.system ''",
    "!!python/module:look_alike ''",
    "!!binary '{mark}'",
    "!!set {{a, b}}",
]


@pytest.mark.parametrize("tag", first(1, TAGS))
def test_tags_of_yaml(tag: str, mark: Path) -> None:
    tag = tag.format(mark=mark)
    config = write(mark.with_name("c.yaml"), tiny(mark.with_name("run")))
    evil = mark.with_name("evil.yaml")
    for place in ("seed: {}", "model: {{network: {}}}", "data: {}", "{}"):
        evil.write_text(place.format(tag))
        require_no_harm(run("fit", "-c", str(config), "-c", str(evil)))
    require_no_harm(run("fit", "-c", str(config), f"--seed={tag}"))


NAMES = [
    *("os.system", "subprocess.Popen", "builtins.eval", "pickle.loads", "look_alike.Evil"),
    *("llm_trainer.Evil", "llm_train_.Evil", "torchx.Evil", "lightning_evil.Evil"),
    *("llm_tr\u0430in.Evil", "torch .Evil", " llm_trainer.Evil", "./look_alike.Evil"),
    *("..look_alike.Evil", "llm_train..look_alike.Evil", "torch.os.system", "torch.hub.load"),
    *("torch.utils.cpp_extension.load", "lightning.pytorch.trainer.os.system", "torch", "."),
    *("llm_train.cli.main", "torch.serialization.pickle.loads", "llm_train.testing.attach.Any"),
]
PLACES: dict[str, Callable[[str], Any]] = {
    "model__network__class_path": str,
    "data__source__class_path": str,
    "trainer__callbacks": lambda name: [part(name, command="touch")],
    "trainer__logger": lambda name: [part(name)],
    "model__optimizer": lambda name: part("TorchOptimizer", optimizer=part(name, lr=0.1)),
    "trainer__strategy": part,
}


@pytest.mark.parametrize("name", first(1, NAMES))
def test_names_of_classes(name: str, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mark.with_name("modules")
    folder.mkdir()
    for module in ("look_alike", "llm_trainer", "llm_train_", "torchx", "lightning_evil"):
        (folder / f"{module}.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    for key, of in PLACES.items():
        config = write(mark.with_name("c.yaml"), tiny(mark.with_name("run"), **{key: of(name)}))
        require_no_harm(run("fit", "-c", str(config)))
    assert not mark.with_name("run").exists()


@pytest.mark.faults
def test_a_line_that_unpacks_to_half_a_gibibyte(mark: Path) -> None:
    corpus = mark.with_name("bomb.jsonl.gz")
    with gzip.open(corpus, "wb", compresslevel=1) as file:
        file.write(b'{"text": "')
        for _ in range(512):
            file.write(bytes(1 << 20))
        file.write(b'"}\n' + b'{"text": "good"}\n' * 100)
    recipe = part(
        "Tokenize",
        corpus=part("JSONLines", paths=[str(corpus)]),
        tokenizer=part("TrainBPE", vocab_size=300),
        split=part("HashSplit", fraction=0.2),
    )
    source = part("TokenShards", path=str(mark.with_name("tokens")))
    config = tiny(mark.with_name("run"), data={"source": source, "recipe": recipe})
    require_no_harm(
        run("prepare", "-c", str(write(mark.with_name("c.yaml"), config))), refused=False
    )
