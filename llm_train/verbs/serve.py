"""Answers requests over HTTP with a checkpoint, in OpenAI's format."""

import argparse
import socket

from llm_train.errors import ConfigError, check_at_least
from llm_train.verbs.base import Load, Verb

_LOOPBACK = ["127.0.0.1", "localhost"]


class Serve(Verb):
    """Serves one checkpoint until it is interrupted."""

    reads = "checkpoint"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """What to serve, and where."""
        parser.add_argument("checkpoint", help="checkpoint or run directory")
        parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network")
        parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
        parser.add_argument("--batch", type=int, default=32, help="most texts in one forward")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Says where, once it answers."""
        try:
            from llm_train.serving.app import Server
        except ImportError as error:
            raise ConfigError(
                f"serve needs a package that is missing ({error}); run "
                "pip install 'llm-train[serve]'"
            ) from error
        from llm_train.run.pretrained import load_checkpoint
        from llm_train.runtime.terminal import say

        check_at_least(flags, 1, "batch", prefix="--")
        with _listening(flags.host, flags.port) as listener:
            pretrained = load_checkpoint(flags.checkpoint, load, flags.device)
            local = flags.host in _LOOPBACK
            server = Server(pretrained, flags.batch, _LOOPBACK if local else ["*"])
            where = f"http://{flags.host}:{listener.getsockname()[1]}/v1"
            say(f"serving {pretrained.name!r} at {where}; Ctrl-C ends it")
            if not local:
                say("note: whoever reaches this address can use it; no key is asked for")
            server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host={host} --port={port} cannot be opened ({error}); --port=0 takes a free one"
        ) from error
