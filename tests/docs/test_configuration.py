"""docs/configuration.md matches the code and lists exactly what class_path accepts."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from llm_train.testing.fork_server import ForkServer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
SCRIPT = ROOT / "scripts" / "configuration_reference.py"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("configuration_reference", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed() -> dict[str, set[str]]:
    """Maps each key to the names of the classes under it."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {s.splitlines()[0]: set(re.findall(r"^### (\w+)$", s, re.MULTILINE)) for s in sections}


def test_page_is_up_to_date(fork_server: ForkServer, tmp_path: Path) -> None:
    # In a process of its own: parsing sets the parser up for the whole interpreter.
    done = fork_server.command("--check", folder=tmp_path, script=SCRIPT)
    assert done.code == 0, done.err


def test_short_names_are_the_exported_subclasses(reference: ModuleType) -> None:
    found = listed()
    for key, package, base in reference.FAMILIES:
        family = importlib.import_module(package)
        root = getattr(family, base, None)
        if root is None:  # the base is Lightning's
            continue
        exported = {
            name
            for name, kind in vars(family).items()
            if inspect.isclass(kind)
            and issubclass(kind, root)
            and not inspect.isabstract(kind)
            and kind is not root
        }
        assert exported <= found[key], key
        assert found[key] == {kind.__name__ for kind in reference.usable(package, base)}, key


def test_smallest_configuration_is_shown(reference: ModuleType) -> None:
    example = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    assert example == reference.SMALLEST
