"""Serves the page of runs that still write, to browsers on this machine only.

The page asks every few seconds and gets itself again without its library; it is drawn anew only
when a file has changed. A run that has nothing to show yet is waited for.
"""

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from llm_train.errors import ConfigError, LLMTrainError
from llm_train.report import read_runs, require_drawing

_FILES = ("metrics.jsonl", "ledger.jsonl", "derived.json", "config.yaml")
_WAITING = '<!DOCTYPE html><meta http-equiv="refresh" content="3"><title>waiting</title><p>'


def server(folders: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """A server on the loopback interface, which does not yet answer.

    Raises:
        ConfigError: the port is taken, or is none; or what draws is not installed.
    """
    require_drawing()
    from llm_train.report.page import page

    @lru_cache(maxsize=2)
    def drawn(_changed: tuple[int, ...], news: bool) -> str:
        return page(read_runs(folders), live=True, library=not news)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files = [folder / name for folder in folders for name in _FILES]
            changed = tuple(file.stat().st_mtime_ns for file in files if file.exists())
            try:
                text = drawn(changed, self.path == "/?news")
            except LLMTrainError as error:  # nothing is there yet
                text = _WAITING + escape(str(error))
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing of each request."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port={port}: {error}; --port=0 takes a free one") from None
