"""Serves the page of runs that still write, to browsers on this machine only.

The page asks every few seconds and gets itself again without its library; it is drawn anew only
when a file has changed. A run that has nothing to show yet is waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from llm_train.errors import ConfigError, LLMTrainError
from llm_train.report import read_runs, require_drawing
from llm_train.runtime.terminal import say

_FILES = ("metrics.jsonl", "ledger.jsonl", "derived.json", "config.yaml")
_WAITING = '<!DOCTYPE html><meta http-equiv="refresh" content="3"><title>waiting</title><p>'

_log = logging.getLogger(__name__)


class Board:
    """The page as it is now."""

    def __init__(self, folders: Sequence[Path]) -> None:
        require_drawing()
        self._folders = folders
        self._lock = Lock()
        self._state: list[int] = []  # of the files
        self._drawn: dict[bool, str] = {}

    def page(self, *, news: bool) -> str:
        """The page of what is written by now, without its library where that is known."""
        from llm_train.report.page import page  # which needs what draws

        with self._lock:
            files = [folder / name for folder in self._folders for name in _FILES]
            state = [file.stat().st_mtime_ns for file in files if file.exists()]
            if state != self._state:
                self._state, self._drawn = state, {}
            if news not in self._drawn:
                try:
                    runs = read_runs(self._folders)
                except LLMTrainError as error:  # nothing is there yet
                    return f"{_WAITING}{escape(str(error))}"
                self._drawn[news] = page(runs, live=True, library=not news)
            return self._drawn[news]


def server(folders: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """A server on the loopback interface, which does not yet answer.

    Raises:
        ConfigError: the port is taken, or is none.
    """
    board = Board(folders)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path != "/":
                self.send_error(404)
                return
            body = board.page(news=query == "news").encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            _log.debug(format, *args)

    try:
        found = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port={port}: {error}; --port=0 takes a free one") from None
    found.daemon_threads = True
    return found


def serve(folders: Sequence[Path], port: int) -> None:
    """Answers until it is interrupted."""
    with server(folders, port) as found:
        say(f"http://127.0.0.1:{found.server_port}/ shows the runs; Ctrl-C ends it")
        try:
            found.serve_forever()
        except KeyboardInterrupt:
            say("")
