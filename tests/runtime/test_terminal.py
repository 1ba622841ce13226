"""Lists on a terminal wrap between words under their values; a file keeps whole lines."""

from __future__ import annotations

import os

import pytest

from llm_train.runtime.terminal import section

ROWS = {"tokens": "1,024 = 1 ranks x 2 micro-batches x 4 samples x 128 positions", "lr": 0.1}


def test_a_long_value_goes_on_below_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(section("batch", ROWS).splitlines()) == 4
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 24)))
    assert section("batch", ROWS).splitlines()[2:] == [
        "  tokens  1,024 = 1 ranks x 2",
        "          micro-batches x 4 samples x",
        "          128 positions",
        "  lr      0.1",
    ]


def test_a_mapping_is_not_shown_as_python_writes_it() -> None:
    assert section("data", {"shares": {"a": 0.25, "b": [1, 2]}}).endswith("a 0.25, b 1, 2")
