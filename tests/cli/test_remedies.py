"""What a message tells to do can be done: the remedy is read off the message, and executed."""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_train import check, verbs
from llm_train.check import trainer_rules
from llm_train.cli import load_settings
from llm_train.errors import LLMTrainError
from llm_train.testing.command import refused
from llm_train.testing.configs import part, tiny, write

ROOT = Path(__file__).parents[2]
NETWORK = "model__network__init_args__"
ADAMW = "model.optimizer.init_args"
LONG: dict[str, Any] = {"budget": "2000 steps", "validate_every": "0 steps"}
ES = part("EarlyStopping", monitor="val/loss")

# What is wrong: overrides of the configuration or an option; what the message says, with each
# remedy in a group; the option that it is.
CASES: list[tuple[dict[str, Any] | str, str, str]] = [
    ({"batch__tokens": 200}, r"nearest: (\d+) or (\d+)", "--batch.tokens={}"),
    ({"validate_every": "7 steps"}, r"use '(0 steps)'", "--validate_every={}"),
    ({"checkpoint__every": "7 steps"}, r"use '(0 steps)'", "--checkpoint.every={}"),
    (
        "--model.schedule.warmup=6 steps",
        r"at most (\d+ steps)",
        "--model.schedule.init_args.warmup={}",
    ),
    (
        {"model__recompute": part("EveryNth", n=3)},
        r"from (\d) to (\d), or use NoRecompute",
        "--model.recompute.n={}",
    ),
    (
        {"model__recompute": part("EveryNth", n=3)},
        r"or use (NoRecompute)",
        "--model.recompute={}",
    ),
    ({f"{NETWORK}vocab_size": 60}, r"set (\S+) to (\d+)", "--{}={}"),
    ({"trainer__devices": [0]}, r"write (\S+)", "--{}"),
    (
        {"trainer__precision": "16-true"},
        r"choose (\S+), (\S+), (\S+), (\S+)",
        "--trainer.precision={}",
    ),
    ("--trainer.strategy=zero", r"one of (auto), (ddp), (fsdp)", "--trainer.strategy={}"),
    (
        {"trainer__callbacks": [part("EarlyStopping", monitor="x")], "validate_every": "2 steps"},
        r"write (\S+) or (\S+) or (\S+)",
        "--trainer.callbacks.monitor={}",
    ),
    (
        {"trainer__callbacks": [ES], "budget": "200 steps"},
        r"write (--\S+='100 steps')",
        "{}",
    ),
    ({"trainer__max_time": "5 minutes"}, r"write ([\d:]+) for", "--trainer.max_time={}"),
    ({f"{NETWORK}width": 15}, r"nearest: (\d+) or (\d+)", "--model.network.width={}"),
    (f"--{ADAMW}.learning_rate=-1", r"usual value is (\S+)", f"--{ADAMW}.learning_rate={{}}"),
    (f"--{ADAMW}.fused=maybe", r"one of (\w+), (\w+), (\w+)", f"--{ADAMW}.fused={{}}"),
    ("--model.network.layers=2.5", r"write (\d) or (\d)", "--model.network.layers={}"),
    ("--model.network.width=wide", r"write (\d+), for", "--model.network.width={}"),
    ("--budget=3", r"write '([^']+)' or '([^']+)'", "--budget={}"),
    ("--model.network=Transfrmer", r"did you mean (\w+)", "--model.network={}"),
    ("--seeed=3", r"did you mean (--\w+)", "{}=3"),
    ("--batch.token=128", r"did you mean (\w+)", "--batch.{}=128"),
    ("--trainer.logger=false", r"; (remove) it", ""),
    (
        {"batch__scaling": {"rule": "linear", "reference_tokens": 0}},
        r"needs (\S+),",
        "--{}=128",
    ),
]


def options(text: str) -> list[str]:
    """Those that a text names, as a shell would hand them on."""
    found: list[str] = re.findall(r"--[\w.]+(?:='[^']+'|=[\w./-]*\w)", text)
    return [option.replace("'", "") for option in found if not option.endswith("URL")]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_way_out_runs(number: int, tmp_path: Path) -> None:
    wrong, pattern, option = CASES[number]
    overrides, given = (wrong, []) if isinstance(wrong, dict) else ({}, [wrong])
    file = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run", **overrides)))
    lines = refused("check", "-c", file, *given)
    found = re.search(pattern, lines[0])
    assert found, lines
    one_by_one = option.count("{}") < 2
    for values in [(each,) for each in found.groups()] if one_by_one else [found.groups()]:
        chosen = [option.format(*values).replace("'", "")] if option else []
        assert check.problems(load_settings(["-c", file, *chosen])) == []


def test_what_replaces_lightnings_own_runs(tmp_path: Path) -> None:
    """Each option that stands in for an argument or a callback, in a run that has room for it."""
    file = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run", **LONG)))
    ways_out = [*trainer_rules.REPLACED.values(), *trainer_rules._FORBIDDEN_CALLBACKS.values()]
    replacing = set()
    for way_out in ways_out:
        named = re.findall(r"class_path: (\w+)", way_out)
        callbacks = [f"--trainer.callbacks=[{{class_path: {name}}}]" for name in named]
        assert options(way_out) or named or "remove it" in way_out
        replacing.add((*options(way_out), *callbacks))
    for replacement in replacing:
        assert check.problems(load_settings(["-c", file, *replacement])) == [], replacement


def texts() -> Iterator[str]:
    """All texts of the package that are no documentation; ``{}`` for what is put in."""
    for path in sorted((ROOT / "llm_train").rglob("*.py")):
        inside = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Expr):
                inside.add(id(node.value))  # a docstring
            if isinstance(node, ast.JoinedStr):
                inside |= {id(value) for value in node.values}
                yield "".join(
                    str(value.value) if isinstance(value, ast.Constant) else "{}"
                    for value in node.values
                )
            elif isinstance(node, ast.Constant) and id(node) not in inside:
                yield str(node.value)


def test_extras_verbs_and_flags_in_messages_exist() -> None:
    everything = "\n".join(texts())
    extras = set(re.findall(r"pip install '?llm-train\[(\w+)\]", everything))
    for path in (ROOT / "llm_train").rglob("*.py"):
        extras |= set(re.findall(r'\blibrary\("[\w.]+", "(\w+)"', path.read_text("utf-8")))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert extras <= known["project"]["optional-dependencies"].keys()
    commands = set(re.findall(r"llm-train ([a-z]+)((?: -c [\w.]+)?)((?: --[\w-]+)?)", everything))
    for verb, _, flag in commands:
        parser = argparse.ArgumentParser(add_help=False)
        verbs.find(verb).add_flags(parser)
        known_flags = [option for action in parser._actions for option in action.option_strings]
        assert flag.strip() in ("", *known_flags), (verb, flag)
    assert min(len(extras), len(commands)) > 5


@pytest.mark.slow
def test_settings_in_messages_exist(tmp_path: Path) -> None:
    sections = "trainer|model|data|batch|checkpoint|device|watch"
    setting = re.compile(rf"\b(?:{sections})(?:\.\w+)+(?<!help)=[a-zA-Z0-9][\w-]*(?![{{\w-])")
    found = sorted({each for text in texts() for each in setting.findall(text)})
    shards = "--data.source={class_path: TokenShards, init_args: {path: x}}"
    file = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run")))
    unknown = []
    for each in found:
        source = [shards] if each.startswith("data.source.packing") else []
        try:
            load_settings(["-c", file, *source, f"--{each}"])
        except LLMTrainError as error:
            unknown += re.findall(r".* is not (?:a setting|one of|a known).*", str(error))
    assert (unknown, len(found) > 20) == ([], True)
