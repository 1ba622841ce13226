"""As much of W&B's server as a run talks to, whose network can be cut."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Way = Literal["well", "silent", "refusing"]

PROJECT = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
BUCKET = {"id": "b", "name": "r", "displayName": "r", "historyLineCount": 0, "project": PROJECT}
ANSWERS = {
    "upsertBucket": {"bucket": {**BUCKET, "config": "{}"}, "inserted": True},
    "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []},
    "createArtifact": {
        "artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}
    },
    "viewer": {"id": "v", "username": "v", "entity": "e", "flags": "{}", "teams": {"edges": []}},
    "project": None,
    "notifyScriptableRunAlert": {"success": True},
    "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None},
}


class Stub:
    """Answers until it is told otherwise.

    Attributes:
        url: of the server.
        way: how it answers.
        answers: after so many it is silent.
        steps: rows that have arrived.
        asked: names of queries and mutations, in order, with their variables.
    """

    def __init__(self, way: Way, answers: int) -> None:
        self.way, self.answers = way, answers
        self.steps: set[int] = set()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.url = ""
        self.closed = threading.Event()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.answers -= 1
        if self.way == "refusing":
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        if self.way == "silent" or self.answers < 0:
            self.closed.wait()
            handler.close_connection = True
            return
        data = {}
        if handler.path.endswith("/graphql"):
            query = json.loads(body)
            name = re.findall(r"\w+", query["query"])[1]
            self.asked.append((name, query.get("variables") or {}))
            data = {"data": {k: v for k, v in ANSWERS.items() if k in body.decode()}}
        elif b"history" in body:
            self.steps |= {int(step) for step in re.findall(rb'\\"_step\\":(\d+)', body)}
        text = json.dumps(data).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)


@contextmanager
def serving(way: Way = "well", *, answers: int = 1 << 30) -> Iterator[Stub]:
    """A server on a free port."""
    stub = Stub(way, answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            if self.path == "/cut/silent" or self.path == "/cut/refusing":
                stub.way = self.path.rpartition("/")[2]  # type: ignore[assignment]
            stub.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        stub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield stub
        stub.closed.set()
        server.shutdown()
