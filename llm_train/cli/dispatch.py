"""Finds the verb, splits its flags from settings, and ends in one line where something is wrong.

Until the verb runs, nothing heavy is imported: an overview, a misspelt verb and a misspelt flag
cost no torch.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llm_train import __version__, verbs
from llm_train.cli.help import COMPLETION, complete, settings_help
from llm_train.cli.spelling import expanded, nearest
from llm_train.cli.unexpected import unexpected
from llm_train.errors import ConfigError, LLMTrainError
from llm_train.runtime.disk import require_writable
from llm_train.runtime.launch import find_launch
from llm_train.verbs.base import Verb

if TYPE_CHECKING:
    from llm_train.data.preparation import DataOptions
    from llm_train.settings import Settings

EPILOG = """\
Every setting is a YAML key and an option: 'batch: {per_device: 4}' is --batch.per_device=4.
Several -c are laid over each other, later over earlier; options come last and win.
  llm-train VERB --print_config -c FILE    the resolved configuration, which runs as it is
  llm-train VERB --help                    every option of a verb
A configuration names classes to run: treat one from somebody else as a program."""
# The first part of every option that is a setting, and the parser's own options.
KEYS = (
    *("seed", "budget", "validate_every", "batch", "checkpoint", "device", "watch", "init_from"),
    *("trainer", "model", "data"),
    *("config", "print_config", "help"),
)
_GRACE_SECONDS = 60.0


def _write(line: str) -> None:
    """Writes one line of a refusal."""
    sys.stderr.write(f"llm-train: error: {line}\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one verb and exits: 0 done, 1 unexpected, 2 wrong input, 128 + n after signal n."""
    try:
        code = _attempt(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:  # before a run listens to signals, or a second time
        sys.stderr.write("llm-train: interrupted\n")
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout, 0)
        if not output.poll(0):
            raise  # another pipe broke
        # Whoever read the output has left, as ``head`` does, which is no fault. What is still in
        # the buffer goes nowhere, or the interpreter would fail to write it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _attempt(arguments: list[str]) -> str | int | None:
    """Runs one verb and returns its exit status."""
    run_dirs: list[Path] = []
    if COMPLETION in os.environ:
        complete(os.environ["COMP_LINE"], _schema())
    try:
        return _dispatch(arguments, run_dirs)
    except LLMTrainError as error:
        _report(str(error), alone=error.alone)
        return 2
    except SystemExit as end:  # after --help, or the parser's --print_config
        return end.code
    except BrokenPipeError:
        raise
    except Exception as error:  # from a library, or a fault of ours
        _write(unexpected(error, run_dirs))
        return 1


def load_settings(arguments: Sequence[str], allow_import: Sequence[str] = ()) -> Settings:
    """See ``whole.load_settings``, which takes seconds to import."""
    from llm_train.runtime.lean_imports import import_lightning

    import_lightning()
    from llm_train.cli import whole

    return whole.load_settings(arguments, allow_import)


@dataclass
class _Loader:
    """Reads configurations for a verb, and notes where they run."""

    allow_import: Sequence[str]
    run_dirs: list[Path]

    def __post_init__(self) -> None:
        if self.allow_import and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # as `python -m` does: both spellings find the module

    def __call__(self, arguments: Sequence[str], /) -> Settings:
        settings = load_settings(arguments, self.allow_import)
        self.run_dirs.append(settings.run_dir)
        return settings

    def data(self, arguments: Sequence[str], /) -> DataOptions:
        from llm_train.cli.data_alone import data_alone

        found = data_alone(arguments, _schema(), self.allow_import, self.run_dirs)
        return found or self(arguments).data

    def schema(self) -> Mapping[str, Any]:
        return _schema()


def _schema() -> Mapping[str, Any]:
    from llm_train.cli.kept import kept

    found: Mapping[str, Any] = kept("schema", _described)
    return found


def _described() -> Mapping[str, Any]:
    from llm_train.runtime.lean_imports import import_lightning

    import_lightning()
    from llm_train.cli import whole

    return whole.described()


def _report(message: str, *, alone: bool) -> None:
    """Prints each problem once, whatever the number of ranks.

    torchrun kills all ranks when the first one leaves, and srun soon after (scripts/slurm.sbatch),
    so the others must wait until rank 0 has spoken. One that is still alive when rank 0 has begun a
    run, or after the grace period, failed on its own, and says so. Once a run has begun, its
    watcher knows whether it did (alone).
    """
    launch, prefix = find_launch(), ""
    if launch.rank != 0:
        if launch.kind == "none":
            return
        sys.stdout.flush()
        if not alone:
            from llm_train.runtime.watch.peers import await_first

            await_first(launch, _GRACE_SECONDS)
        prefix = f"rank {launch.rank}: "
    for line in message.splitlines():
        _write(f"{prefix}{line}")


def _dispatch(arguments: list[str], run_dirs: list[Path]) -> int:
    name = arguments[0] if arguments else "--help"
    summaries = verbs.summaries()
    if name in ("-h", "--help"):
        lines = [f"  {verb:9} {summary}" for verb, summary in summaries.items()]
        usage = "usage: llm-train VERB [-c FILE.yaml ...] [--key=value ...]"
        sys.stdout.write("\n".join([usage, "", *lines, "", EPILOG, ""]))
        return 0
    if name == "--version":
        sys.stdout.write(f"llm-train {__version__}\n")
        return 0
    if name not in summaries:
        raise ConfigError(f"{name!r} is not a verb; {nearest(name, list(summaries))}")
    verb = verbs.find(name)
    flags = _flags(verb, name, summaries[name], arguments[1:])
    return verb.run(flags, _Loader(flags.allow_import, run_dirs)) or 0


def _flags(verb: Verb, name: str, summary: str, arguments: list[str]) -> argparse.Namespace:
    """The verb's own flags; what is a setting is left in ``settings``."""
    parser = _FlagParser(
        prog=f"llm-train {name}", description=summary, allow_abbrev=False, add_help=False
    )
    parser.set_defaults(allow_import=[])
    verb.add_flags(parser)
    takes_settings = verb.reads == "settings"
    if verb.reads != "files":
        parser.add_argument(
            "--allow-import",
            action="append",
            metavar="NAME",
            help="module that a class_path may import besides llm_train, torch and lightning",
        )
    if {"-h", "--help"} & set(arguments):
        if takes_settings:
            parser.usage = f"llm-train {name} -c FILE.yaml [-c OVERLAY.yaml ...] [--key=value ...]"
        parser.print_help()
        sys.stdout.write(f"\n{settings_help(_schema())}" if takes_settings else "\n")
        sys.exit(0)
    flags, rest = parser.parse_known_args(arguments)
    for action in parser._actions:
        if str(action.metavar).endswith(("PATH", "FILE")):
            setattr(flags, action.dest, expanded(getattr(flags, action.dest)))
        if str(action.metavar).startswith("OUT_") and (out := getattr(flags, action.dest)):
            # Not only after hours of work.
            option, file = [*action.option_strings, action.dest][0], action.metavar == "OUT_FILE"
            require_writable(out, option, file=file)
    # A sweep's agent writes ${args_no_hyphens} so, without the hyphens.
    flags.settings = [
        f"--{w}" if w.partition("=")[0].partition(".")[0] in KEYS else w for w in rest
    ]
    known = [option for action in parser._actions for option in action.option_strings]
    if takes_settings:
        known += [f"--{key}" for key in KEYS]
    for argument in flags.settings:
        option = argument.partition("=")[0]
        top = option.partition(".")[0].removesuffix("+")
        if not takes_settings or (option.startswith("--") and top not in known):
            raise ConfigError(
                f"{option} is not an option of llm-train {name}; {nearest(top, known)}"
            )
    return flags


class _FlagParser(argparse.ArgumentParser):
    """Reports like everything else: one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")
