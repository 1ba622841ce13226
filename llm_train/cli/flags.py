"""Options of verbs that are no settings; imports nothing heavy, as a misspelt verb needs none."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from llm_train.errors import ConfigError

_WITHOUT_SETTINGS = ("report", "generate")


def split(
    verb: str, summary: str, arguments: list[str]
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Splits the few options that are not settings from those that are, and names the former."""
    parser = _FlagParser(
        prog=f"llm-train {verb}", description=summary, allow_abbrev=False, add_help=False
    )
    if verb in _FLAGS:
        _FLAGS[verb](parser)
    if verb != "report":  # which reads what a run wrote and builds nothing
        parser.add_argument(
            "--allow-import",
            action="append",
            default=[],
            metavar="NAME",
            help="module that a class_path may import besides llm_train, torch and lightning",
        )
    options = [option for action in parser._actions for option in action.option_strings]
    if {"-h", "--help"} & set(arguments):
        if verb in _WITHOUT_SETTINGS:
            parser.print_help()
            sys.exit(0)
        parser.usage = f"llm-train {verb} -c FILE.yaml [-c OVERLAY.yaml ...] [--key=value ...]"
        parser.print_help()
        sys.stdout.write("\n")
    flags, rest = parser.parse_known_args(arguments)
    if rest and verb in _WITHOUT_SETTINGS:
        name = rest[0].partition("=")[0]
        raise ConfigError(f"llm-train {verb} has no option {name}; {nearest(name, options)}")
    return flags, rest, options


def _prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace what is there")


def _fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", default="", metavar="auto|PATH", help="continue a run")
    parser.add_argument(
        "--plan",
        default="",
        metavar="FILE",
        help="what plan --json wrote: compare peak and step time with it as well",
    )
    parser.add_argument(
        "--profile", action="store_true", help="record three steps and say where time went"
    )
    parser.add_argument(
        "--count-collectives",
        action="store_true",
        help="count what ranks exchange in the last two steps, for metrics.jsonl",
    )


def _validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="auto", metavar="auto|PATH", help="what to score")


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=0, help="GPUs of a node")
    parser.add_argument("--nodes", type=int, default=0, help="nodes")
    parser.add_argument("--gpu", default="h200", help="short name of the device")
    parser.add_argument("--json", default="", metavar="FILE", help="write the same as JSON")


def _parity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", default="2", metavar="N[,N]", help="numbers of ranks")
    parser.add_argument("--steps", default="50", metavar="N", help="optimizer steps of a run")
    parser.add_argument(
        "--strategies", default="", metavar="NAME[,NAME]", help="which; without it, all"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the table to FILE")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory, for instance runs/quickstart")


def _generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint or run directory")
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--tokens", type=int, default=200, help="most tokens to add")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k likeliest; 0 keeps all")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep this much probability")
    parser.add_argument("--stop", default="", help="token text that ends the sample")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


_FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "prepare": _prepare,
    "fit": _fit,
    "validate": _validate,
    "plan": _plan,
    "parity": _parity,
    "report": _report,
    "generate": _generate,
}


class _FlagParser(argparse.ArgumentParser):
    """Reports like everything else: one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def nearest(word: str, known: Sequence[str]) -> str:
    """Like ``schema.nearest``, which would import torch."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
