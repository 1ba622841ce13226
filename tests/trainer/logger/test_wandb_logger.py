"""W&B runs as it is installed, without a network: offline files, and unreachable servers.

Each scenario is a process of its own, because wandb keeps one service per process.
"""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_train.errors import ConfigError
from llm_train.trainer.logger import WandB

pytest.importorskip("wandb")

# Imports once, then forks a process per line (a JSON list: arguments, answer, environment).
SCRIPT = """
import json, logging, os, sys, traceback
from pathlib import Path
import wandb
from llm_train.trainer.logger import WandB

def train(directory, mode, seconds):
    logger = WandB(project="p", tags=("a",), mode=mode, init_timeout_seconds=seconds)
    logger.attach(Path(directory))
    logger.log_hyperparams({"width": 128, "nested": {"a": 1}})
    for step in (0, 10, 10, 20, 10, 30):
        logger.log_metrics({"train/loss": 1.0 + step, "progress/tokens": step * 1000.0}, step=step)
    told = {"mode": logger.mode, "id": logger.version}
    logger.finalize("success")
    logger.log_metrics({"val/loss": 1.0}, step=30)
    logger.finish()
    return told

for line in sys.stdin:
    *arguments, answer, environment = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ.update(environment)
            warnings = []
            handler = logging.Handler()
            handler.emit = lambda record: warnings.append(record.getMessage())
            logging.getLogger("llm_train").addHandler(handler)
            told = train(*arguments)
            Path(answer).write_text(json.dumps({**told, "warnings": warnings}))
            wandb.teardown()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Starts the process that forks; its own output goes to a file, for when something fails."""
    home = tmp_path_factory.mktemp("home")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    own = {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "HOME": str(home),
        "NETRC": str(home / "n"),
    }
    with (
        open(home / "stderr", "w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**clean, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield process, home / "stderr"
        process.stdin.close()


@pytest.fixture
def train(server, tmp_path) -> Train:
    """Trains in a process of its own and returns what it says at its end, and its warnings."""
    process, errors = server

    def run(directory: Path, mode: str, seconds: float = 3.0, **environment: str) -> dict[str, Any]:
        answer = tmp_path / "answer.json"
        line = json.dumps([str(directory), mode, seconds, str(answer), environment])
        process.stdin.write(line + "\n")
        process.stdin.flush()
        # wandb writes to standard output too; the code is the only line that is a number.
        code = next(text for text in process.stdout if re.fullmatch(r"-?[0-9]+\n", text))
        assert code == "0\n", errors.read_text()
        return json.loads(answer.read_text())

    return run


def test_offline_keeps_its_id_over_a_second_start(train, tmp_path):
    run = tmp_path / "run"
    first, second = train(run, "auto"), train(run, "offline")
    assert first == second  # without a key, "auto" is offline
    assert first["mode"] == "offline"
    assert first["warnings"] == []
    assert (run / "wandb_id.txt").read_text().strip() == first["id"] != ""
    files = sorted((run / "wandb").glob(f"offline-run-*-{first['id']}/run-{first['id']}.wandb"))
    assert len(files) >= 1
    assert b"train/loss" in files[0].read_bytes()
    assert b"trainer/step" in files[0].read_bytes()


def test_an_unreachable_server_costs_little_and_stops_nothing(train, tmp_path):
    with socket.socket() as probe:  # nobody listens on this port
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    told = train(tmp_path / "run", "auto", WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert told["mode"] == "offline"
    [warning] = told["warnings"]
    assert warning.startswith("W&B online failed (URLError: ")
    assert warning.endswith("; going on offline")
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{told['id']}"))


def test_online_without_a_key_asks_nobody(train, tmp_path):
    told = train(tmp_path / "run", "online")
    assert told["mode"] == "offline"
    assert "no API key in WANDB_API_KEY or netrc" in told["warnings"][0]


def test_when_nothing_can_be_written_nothing_is_logged_and_training_goes_on(train, tmp_path):
    (tmp_path / "run").write_text("a file where the run directory should be")
    told = train(tmp_path / "run", "offline")
    assert told["mode"] == "disabled"
    assert told["warnings"][0].startswith("W&B offline failed (FileExistsError: ")


class Broken(http.server.BaseHTTPRequestHandler):
    """A server that answers but cannot do anything."""

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_a_broken_server_stops_nothing(train, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        told = train(tmp_path / "run", "online", WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
        server.shutdown()
    assert told["mode"] == "offline"
    assert told["warnings"][0].startswith("W&B online failed (CommError: ")
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{told['id']}"))


@pytest.mark.slow
def test_a_silent_server_stops_nothing(train, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = train(tmp_path / "run", "online", 2.0, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert told["mode"] == "offline"
    assert told["warnings"][0].startswith("W&B online failed (TimeoutError: ")


def test_auto_follows_the_environment_and_keys(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert WandB().mode == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "x" * 40)
    assert WandB().mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert WandB().mode == "disabled"
    assert WandB(mode="online").mode == "online"


def test_disabled_does_nothing(tmp_path):
    logger = WandB(mode="disabled", directory=str(tmp_path / "run"))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.finish()
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_work_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"^WandB\.init_timeout_seconds=0\.0 leaves no time"):
        WandB(init_timeout_seconds=0.0)
    monkeypatch.setattr("llm_train.trainer.logger.wandb.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install llm-train\[wandb\]"):
        WandB()
    assert WandB(mode="disabled").mode == "disabled"
