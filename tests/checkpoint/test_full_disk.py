"""A disk that fills up costs checkpoints and lines, never the run, and gives its space back."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from llm_train.checkpoint import dcp
from llm_train.testing.command import run
from llm_train.testing.configs import losses, tiny, write
from llm_train.trainer.logger import JSONLMetrics

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SHORT = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")


@pytest.mark.parametrize("place", [(dcp, "write"), (torch, "save"), (os, "replace")], ids=str)
@pytest.mark.parametrize("error", [FULL, SHORT], ids=["full", "short"])
def test_a_failed_save_is_tried_again(
    tmp_path: Path, monkeypatch, caplog, place: tuple[object, str], error: Exception
) -> None:
    module, name = place
    if module is os and error is SHORT:
        pytest.skip("a rename raises no such error")
    real, calls, config = (
        getattr(module, name),
        [0],
        write(tmp_path / "c.yaml", tiny(tmp_path / "run")),
    )

    def failing(*arguments: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == 1 + (module is torch):
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, failing)
    done = run("fit", "-c", str(config))
    checkpoints = tmp_path / "run" / "checkpoints"
    assert done.code == 0, done.err
    lines = [line for line in caplog.messages if "cannot save" in line]
    assert len(lines) == 1, caplog.text
    for part in (str(checkpoints), "MiB free", "saved before are untouched", "tries again"):
        assert part in lines[0]
    assert "step-00000006" in os.listdir(checkpoints)
    assert not list(checkpoints.glob(".staging*"))


def test_only_the_last_save_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise FULL

    monkeypatch.setattr(torch, "save", failing)
    done = run("fit", "-c", str(write(tmp_path / "c.yaml", tiny(tmp_path / "run"))))
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("llm-train: error: cannot save step 6 in ")
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]


def test_lines_wait_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    logger = JSONLMetrics(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    real = JSONLMetrics._write

    def torn(self: JSONLMetrics, lines: bytes) -> None:
        real(self, lines[:10])
        raise FULL

    monkeypatch.setattr(JSONLMetrics, "_write", torn)
    logger.log_metrics({"a": 2.0}, step=2)
    logger.log_event("signal", 2)
    monkeypatch.setattr(JSONLMetrics, "_write", real)
    logger.log_metrics({"a": 3.0}, step=3)
    rows = [json.loads(line) for line in logger.path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2, 3]
    assert len(caplog.messages) == 1
    assert str(logger.path) in caplog.text
