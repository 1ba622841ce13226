"""Verbs, their flags, and how a failure leaves the program: one line, exit code 2, no traceback."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from llm_train.cli import flags as flag_parsing
from llm_train.errors import ConfigError, LLMTrainError
from llm_train.runtime.launch import find_launch

if TYPE_CHECKING:
    from llm_train.settings import Settings

VERBS = {
    "prepare": "make the tokens that data.source reads, as data.recipe says",
    "fit": "train",
    "validate": "score a checkpoint on the held-out data",
    "check": "find all problems of a configuration and print every derived number",
    "plan": "say what a run would take on GPUs that are not here, and find a faster one",
    "parity": "train under every strategy and compare what comes out",
    "generate": "write text with a checkpoint",
    "report": "draw what a run did as HTML and PNG",
}
EPILOG = """\
Every setting is a YAML key and an option: 'batch: {per_device: 4}' is --batch.per_device=4.
Several -c are laid over each other, later over earlier; options come last and win.
  llm-train VERB --print_config -c FILE    the resolved configuration, which runs as it is
  llm-train VERB --help                    every option of a verb
A configuration names classes to run: treat one from somebody else as a program."""
_GRACE_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one verb and exits: 0 done, 2 wrong input, 128 + n after signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
    except LLMTrainError as error:
        _report(str(error))
        code = 2
    sys.stdout.flush()
    sys.exit(code)


def load_settings(
    arguments: Sequence[str], allow_import: Sequence[str] = (), options: Sequence[str] = ()
) -> Settings:
    """See ``parser.load_settings``, which takes seconds to import."""
    from llm_train.cli import parser

    return parser.load_settings(arguments, allow_import, options)


def _report(message: str) -> None:
    """Prints each problem once, whatever the number of ranks.

    torchrun kills all ranks when the first one leaves, and srun soon after (scripts/slurm.sbatch),
    so the others must wait until rank 0 has spoken. One that is still alive after the grace period
    failed on its own, and says so.
    """
    launch, prefix = find_launch(), ""
    if launch.rank != 0:
        if launch.kind == "none":
            return
        sys.stdout.flush()
        time.sleep(_GRACE_SECONDS)
        prefix = f"rank {launch.rank}: "
    for line in message.splitlines():
        sys.stderr.write(f"llm-train: error: {prefix}{line}\n")
    sys.stderr.flush()


def _dispatch(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        sys.stdout.write(_overview())
        return 0
    if verb == "--version":
        from llm_train import __version__

        sys.stdout.write(f"llm-train {__version__}\n")
        return 0
    if verb not in VERBS:
        raise ConfigError(f"{verb!r} is not a verb; {flag_parsing.nearest(verb, list(VERBS))}")
    flags, rest, options = flag_parsing.split(verb, VERBS[verb], arguments[1:])
    return _run(verb, flags, rest, options)


def _overview() -> str:
    lines = ["usage: llm-train VERB [-c FILE.yaml ...] [--key=value ...]", ""]
    lines += [f"  {name:9} {summary}" for name, summary in VERBS.items()]
    return "\n".join([*lines, "", EPILOG, ""])


def _run(verb: str, flags: argparse.Namespace, rest: list[str], options: list[str]) -> int:
    if verb == "fit" and threading.current_thread() is threading.main_thread():
        # A time limit that passes before training starts must not kill by the signal that means
        # "stopped and saved": such a job would be requeued for ever.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from llm_train.verbs import fit as run
    from llm_train.verbs import generate as generation

    _quieten_libraries()
    if verb == "report":
        return run.report(Path(flags.run))
    if verb == "generate":
        return generation.generate(flags, load_settings)
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    settings = load_settings(rest, flags.allow_import, options)
    verbs: dict[str, Callable[[], int]] = {
        "prepare": lambda: run.prepare(settings, force=flags.force),
        "check": lambda: run.check(settings),
        "plan": lambda: _plan(settings, flags),
        "parity": lambda: _parity(settings, flags),
        "validate": lambda: run.validate(settings, flags.checkpoint),
        "fit": lambda: run.fit(
            settings,
            flags.resume,
            profile=flags.profile,
            count_collectives=flags.count_collectives,
            plan=flags.plan,
        ),
    }
    try:
        return verbs[verb]()
    except MisconfigurationException as error:  # a combination that only Lightning knows about
        reason = " ".join(str(error).split())
        raise ConfigError(f"trainer: Lightning refuses these settings: {reason}") from error


def _plan(settings: Settings, flags: argparse.Namespace) -> int:
    from llm_train.verbs.plan import plan

    return plan(
        settings, devices=flags.devices, nodes=flags.nodes, gpu=flags.gpu, json_path=flags.json
    )


def _parity(settings: Settings, flags: argparse.Namespace) -> int:
    from llm_train.parity import variants
    from llm_train.verbs import parity as compare

    ranks = [_count("--ranks", text) for text in flags.ranks.split(",")]
    names = flags.strategies.split(",") if flags.strategies else ()
    return compare.parity(
        settings,
        lambda arguments: load_settings(arguments, flags.allow_import),
        variants.variants(names, ranks),
        steps=_count("--steps", flags.steps),
        options=[f"--allow-import={name}" for name in flags.allow_import],
        json_file=Path(flags.json) if flags.json else None,
    )


def _count(flag: str, text: str) -> int:
    if not text.strip().removeprefix("-").isdecimal():
        raise ConfigError(f"{flag}={text} is not a whole number")
    return int(text)


def _quieten_libraries() -> None:
    """Hides advice that does not apply here; real warnings of the libraries stay.

    Comes after Lightning is imported, because that sets its own level.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Windows of a memory map are read faster than a worker process can hand them over.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The last step is always a log point.
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # Held-out sums are already those of all ranks when they are logged.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .self.log.*sync_dist.*")
    warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.` is deprecated.*")
