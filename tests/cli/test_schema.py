"""What editors are told of a configuration: the JSON schema, and the file that it is kept in."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from inspect import isabstract
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters

import llm_train
from llm_train.cli.kept import kept
from llm_train.context import Part
from llm_train.preset_files import presets
from llm_train.runtime import yaml12
from llm_train.testing.command import run
from llm_train.testing.configs import part, tiny
from llm_train.testing.ranks import environment


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft7Validator:
    outcome = run("schema")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    jsonschema.Draft7Validator.check_schema(found)
    return jsonschema.Draft7Validator(found)


def test_every_setting_has_a_type() -> None:
    """jsonargparse leaves names of types that it cannot look up as text, and then checks nothing.

    It looks in the module of a class also for what the class inherits.
    """
    modules = pkgutil.walk_packages(llm_train.__path__, "llm_train.")
    names = [m.name for m in modules if not m.name.endswith(("modeling_llm_train", "__main__"))]
    parts = [
        value
        for module in map(importlib.import_module, names)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Part) and not isabstract(value)
    ]
    assert len(parts) > 100
    parameters = [(part, p) for part in parts for p in get_signature_parameters(part, None)]
    assert [(part, p.name) for part, p in parameters if isinstance(p.annotation, str)] == []


def test_what_is_sound_is_valid(schema: jsonschema.Draft7Validator, tmp_path: Path) -> None:
    files = [file for name, file in presets().items() if not name.startswith("sweeps/")]
    for file in [*files, Path(__file__).parents[2] / "docs/examples/all.yaml"]:
        assert not list(schema.iter_errors(yaml12.load(file.read_text("utf-8")))), file
    for changes in (
        {"trainer__callbacks": ["my.code.Callback", part("EarlyStopping", monitor="val/loss")]},
        {"trainer__logger": part("llm_train.trainer.logger.WandB", project="x")},
        {"model__optimizer": part("my.code.Optimizer", anything=1)},
        {"data__source": part("Mixture", sources={"a": part("RandomTokens", vocabulary=50)})},
    ):
        schema.validate(tiny(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"buget": "2 steps"},  # codespell:ignore buget
        {"budget": 2000},
        {"budget": "2000"},
        {"batch__tokens": "many"},
        {"batch__scaling": {"rule": "cubic"}},
        {"model__optimizer": part("Adam_W", learning_rate=0.1)},
        {"model__optimizer": part("AdamW", learning_rat=0.1)},
        {"model__optimizer": {"class_path": "AdamW", "learning_rate": 0.1}},
        {"model__optimizer": part("llm_train.model.optimizer.AdamW", learning_rate="high")},
        {"trainer__strategy": "fsdp3"},
        {"trainer__precision": "bf16"},
        {"trainer__max_epochs": 3},
        {"data__source": part("Mixture", sources={"a": part("RandomTokens", vocabularies=50)})},
    ],
    ids=str,
)
def test_a_slip_is_found(
    schema: jsonschema.Draft7Validator, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert list(schema.iter_errors(tiny(tmp_path, **changes)))


def test_it_is_made_once_for_each_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    values = iter(range(9))
    assert [kept("x", lambda: next(values)) for _ in range(3)] == [0, 0, 0]
    [file] = (tmp_path / "llm_train").iterdir()
    file.write_text('{"stamp": "of an earlier version", "value": 7}')
    assert kept("x", lambda: next(values)) == 1
    file.write_text("half of")
    assert kept("x", lambda: next(values)) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # no folder can be made there
    assert kept("x", lambda: next(values)) == 3


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("llm-train prese", "presets"),
        ("llm-train fit --resu", "--resume"),
        ("llm-train fit -c preset:gpt2-1.", "preset:gpt2-1.5b"),
        ("llm-train check --batch.tok", "--batch.tokens"),
    ],
)
def test_a_shell_completes(line: str, word: str, tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    file = tmp_path / "completions"
    subprocess.run(
        [sys.executable, "-m", "llm_train"],
        env=environment()
        | asked
        | {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(file)},
        check=True,
        capture_output=True,
    )
    assert file.read_text().split() == [word]
