"""No file of a run holds a secret, and no message repeats one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_train.cli.secret_keys import literals
from llm_train.testing.command import refused
from llm_train.testing.configs import part, tiny, write
from llm_train.testing.fork_server import ForkServer

SECRET = "hunter2hunter2"
LOGGER = """
import os
from llm_train.trainer.logger import JSONLMetrics

class Remote(JSONLMetrics):
    def __init__(self, api_key: str, headers: dict[str, str] | None = None):
        super().__init__("elsewhere")
        secret = os.environ["A_SECRET"]
        assert (api_key, headers) == (secret, {"auth_token": secret})
"""


def test_no_file_of_a_run_holds_a_secret(fork_server: ForkServer, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "their_logger.py").write_text(LOGGER)
    named = "${A_SECRET}"
    remote = part("their_logger.Remote", api_key=named, headers={"auth_token": named})
    loggers = [remote, part("WandB", mode="offline")]
    config = write(tmp_path / "c.yaml", tiny(tmp_path / "run", steps=4, trainer__logger=loggers))
    arguments = ("fit", "-c", str(config), "--allow-import", "their_logger")
    environment = {"A_SECRET": SECRET, "PYTHONPATH": tmp_path}
    options: dict[str, Any] = {"folder": tmp_path, "cwd": tmp_path, "environment": environment}
    done = fork_server.command(*arguments, **options)
    assert done.code == 0, done.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.relative_to(tmp_path).parts[:2] for path in files}
    assert {("run", "records"), ("run", "checkpoints"), ("run", "wandb")} <= names
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert named in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"api_key": SECRET}, ""),
        ({"dict_kwargs": {"credentials": {"user": SECRET}}}, ""),
        ({}, f"--trainer.logger.init_args={{api_key: {SECRET}}}"),
        ({}, f"--trainer.logger.api_key={SECRET}"),
        ({"tracking_uri": f"https://me:{SECRET}@host"}, ""),
    ],
)
def test_a_secret_that_is_written_out(
    tmp_path: Path, arguments: dict[str, Any], option: str
) -> None:
    logger = part("lightning.pytorch.loggers.CometLogger", **arguments)
    config = write(tmp_path / "c.yaml", tiny(tmp_path / "run", trainer__logger=logger))
    [line] = refused("check", "-c", str(config), *([option] if option else []))
    assert line.startswith("trainer.logger.")
    assert SECRET not in line
    assert "environment variable" in line or "leave it out" in line


def test_a_variable_that_is_not_set(tmp_path: Path) -> None:
    logger = part("CSVLogger", save_dir=str(tmp_path), name="x")
    config = tiny(tmp_path / "run", trainer__logger=logger)
    config["trainer"]["logger"]["dict_kwargs"] = {"password": "${NOT_SET_HERE}"}
    line = refused("check", "-c", str(write(tmp_path / "c.yaml", config)))[0]
    assert "NOT_SET_HERE is not set" in line


def test_a_number_is_a_secret_too_but_not_at_a_slip_for_tokens() -> None:
    assert list(literals({"logger": {"password": 12345678}}))
    assert not list(literals({"batch": {"token": 4096}}))
