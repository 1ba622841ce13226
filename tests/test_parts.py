"""Parts speak for themselves: a new one is one file, and nobody else asks for a part by name."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llm_train.testing.ranks import environment
from llm_train.trainer.strategy import known_words

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llm_train"
FAMILIES = {
    *("model/network", "model/loss", "model/optimizer", "model/schedule", "model/recompute"),
    *("data", "data/corpus", "data/foreign", "data/tokenizer"),
    *("trainer/strategy", "trainer/callbacks", "trainer/logger"),
}

# --- a new part is one file -----------------------------------------------------------------------

EXAMPLES = {
    "running_mean": "model/network",
    "confidence_penalty": "model/loss",
    "sign_descent": "model/optimizer",
    "step_decay": "model/schedule",
    "numpy_tokens": "data",
    "compressed": "trainer/strategy",
    "weight_norm": "trainer/callbacks",
}
# Families without an example: module, folder, base class, and where that comes from.
EMPTY = (
    ("Thrifty", "model/recompute", "NoRecompute", "llm_train.model.recompute.none"),
    ("Pages", "data/corpus", "StandardLibrary", "llm_train.data.corpus.standard_library"),
    ("Letters", "data/tokenizer", "Characters", "llm_train.data.tokenizer.characters"),
    ("Thirds", "data", "TailSplit", "llm_train.data.split"),
    ("Cooked", "data", "Tokenize", "llm_train.data.tokenize_corpus"),
    ("Quiet", "trainer/logger", "RunLogger", "llm_train.trainer.logger.base"),
)
QUIET = """
    name, version = "quiet", ""

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...
"""


def test_a_new_part_is_one_file(tmp_path: Path) -> None:
    """In a copy of the package, files are added; nothing else is touched."""
    shutil.copytree(PACKAGE, tmp_path / "llm_train", ignore=shutil.ignore_patterns("__pycache__"))
    for module, folder in EXAMPLES.items():
        text = (ROOT / "docs" / "examples" / f"{module}.py").read_text(encoding="utf-8")
        # A strategy may answer to a word of its own.
        text = text.replace(
            "    def __init__(self, bucket",
            '    words = ("half",)\n\n    def __init__(self, bucket',
        )
        # A recipe has no effect on a source that has no place for what it makes.
        text = text.replace("    unmasked = True\n", "    unmasked = True\n    folder = None\n")
        (tmp_path / "llm_train" / folder / f"{module}.py").write_text(text, encoding="utf-8")
    for name, folder, base, origin in EMPTY:
        body = QUIET if name == "Quiet" else ""
        text = f'from {origin} import {base}\n\n\nclass {name}({base}):\n    """New."""\n{body}'
        (tmp_path / "llm_train" / folder / f"{name.lower()}.py").write_text(text, encoding="utf-8")
    np.save(tmp_path / "tokens.npy", np.arange(3000, dtype=np.uint16) % 50)
    config: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "examples" / "all.yaml").read_text())
    parts = (*config["model"].values(), config["data"]["source"], *config["trainer"]["callbacks"])
    for part in parts:
        part["class_path"] = part["class_path"].rpartition(".")[2]
    config["model"]["recompute"] = {"class_path": "Thrifty"}
    config["data"]["recipe"] = {
        "class_path": "Cooked",
        "init_args": {
            "corpus": {"class_path": "Pages"},
            "tokenizer": {"class_path": "Letters"},
            "split": {"class_path": "Thirds"},
        },
    }
    config["trainer"] |= {
        "strategy": "half",
        "logger": {"class_path": "Quiet"},
        "accelerator": "cpu",
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "llm_train", "check", "-c", "all.yaml"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for shown in ("RunningMean", "SignDescent", "StepDecay", "Thrifty", "Compressed"):
        assert shown in done.stdout


# --- nobody asks for a part by name ---------------------------------------------------------------

ALLOWED = {
    "exchange/families/base.py": (1, "architectures elsewhere are described by a Transformer's"),
    "exchange/widening.py": (1, "names and sizes of its parameters, which no other network has"),
    "settings.py": (1, "Lightning's own callbacks and loggers have no rules"),
}
"""File -> number of comparisons in it, and why the part cannot be asked instead."""


def defined() -> dict[str, set[str]]:
    """Class -> the families' folders that define it; ``Part`` is everybody's, a tuple nobody's."""
    found: dict[str, set[str]] = defaultdict(set, {"Part": set()})
    for folder in FAMILIES:
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and "NamedTuple" not in map(
                    ast.unparse, node.bases
                ):
                    found[node.name].add(folder)
    return found


def comparisons(path: Path, classes: dict[str, set[str]], words: set[str]) -> Iterator[ast.AST]:
    """Tests of the class of another folder's part, and comparisons with such a name or word."""
    home, text = str(path.parent.relative_to(PACKAGE)), path.read_text(encoding="utf-8")
    foreign = {
        name
        for name, folders in classes.items()
        if home not in folders and f"class {name}" not in text
    }
    asked = foreign | (set() if home == "trainer/strategy" else words)
    tree = ast.parse(text)
    asserted = {  # which narrows a type of Lightning's and decides nothing
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in asserted:
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            if names(node) & foreign:
                yield node
        elif isinstance(node, ast.Compare) and (
            texts(node) & asked or ("type(" in ast.unparse(node) and names(node) & foreign)
        ):
            yield node


def names(node: ast.AST) -> set[str]:
    """Names in an expression, but for those of libraries, as in ``nn.Linear``."""
    attributes = [inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute)]
    ours = {a.attr for a in attributes if ast.unparse(a.value) not in ("nn", "optim", "pl")}
    return ours | {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def texts(node: ast.AST) -> set[str]:
    constants = [inner for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
    return {inner.value for inner in constants if isinstance(inner.value, str)}


def test_nobody_asks_for_a_part_by_name() -> None:
    classes, words = defined(), {*known_words()} - {"auto"}
    found: list[tuple[str, str]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        found += [(name, ast.unparse(node)) for node in comparisons(path, classes, words)]
    expected = {name: number for name, (number, _) in ALLOWED.items()}
    assert Counter(name for name, _ in found) == expected, found
    assert len(found) <= 10
