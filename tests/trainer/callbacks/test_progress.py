"""What a terminal shows of a run: one rate, the learning rate, and when it validates."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_train.testing import command
from llm_train.testing.configs import tiny, write


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_and_the_table_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    file = write(Path("c.yaml"), tiny(Path("run"), steps=4, validate_every="2 steps"))
    monkeypatch.setattr(command, "io", SimpleNamespace(StringIO=Terminal))
    code, screen, shown = command.run("fit", "-c", str(file))
    assert code == 0
    assert re.search(r"4/4 \[00:\d\d<00:00, loss [\d.]+  [\d,]+ tokens/s  lr 0.001\]", shown)
    assert "it/s" not in shown
    assert "step/s" not in shown
    assert re.search(r"validating:  50%.*\n?.*held-out loss", shown.replace("\r", ""))
    assert shown.rstrip().rpartition("\r")[2].startswith("100%")  # and no longer "validating"
    table = screen.partition("done")[0].splitlines()
    assert len(table) <= 24
    assert max(map(len, table)) <= 80
    assert any(re.match(r"  parameters +10,224", line) for line in table)
