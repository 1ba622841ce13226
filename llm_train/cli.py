"""The command line, and the only file that knows jsonargparse.

LightningCLI, subclassed once to close its traps: no abbreviations, no automatic optimizer, no
hyper-parameters out of checkpoints, no import of code that was not allowed, duplicate keys refused,
and every error in one line that names the key.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from llm_train.errors import ConfigError, LLMTrainError

VERBS = {
    "prepare": "make the tokens that data.source reads, as data.recipe says",
    "fit": "train",
    "validate": "score a checkpoint on the held-out data",
    "check": "find all problems of a configuration and print every derived number",
    "generate": "write text with a checkpoint",
    "report": "draw what a run did as HTML and PNG",
}
ALLOWED_IMPORTS = ["llm_train", "torch", "lightning"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one verb and exits: 0 done, 2 wrong input, 128 + n after signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
    except LLMTrainError as error:
        if _rank() == 0:
            for line in str(error).splitlines():
                print(f"llm-train: error: {line}", file=sys.stderr)
        code = 2
    sys.stdout.flush()
    sys.exit(code)


def _dispatch(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print("usage: llm-train VERB [-c FILE.yaml ...] [--key=value ...]\n")
        for name, summary in VERBS.items():
            print(f"  {name:9} {summary}")
        print("\n'llm-train VERB --help' lists the options; every option is also a YAML key.")
        return 0
    if verb == "--version":
        from llm_train import __version__

        print(f"llm-train {__version__}")
        return 0
    if verb not in VERBS:
        raise ConfigError(f"{verb!r} is not a verb; {_nearest(verb, list(VERBS))}")
    flags, rest = _flags(verb, arguments[1:])
    from llm_train import run

    _quieten_libraries()

    if verb == "report":
        return run.report(Path(flags.run))
    if verb == "generate":
        return run.generate(flags, load_settings)
    settings = load_settings(rest, flags.allow_import)
    if verb == "prepare":
        return run.prepare(settings, force=flags.force)
    if verb == "check":
        return run.check(settings)
    if verb == "validate":
        return run.validate(settings, flags.checkpoint)
    return run.fit(settings, flags.resume)


def _quieten_libraries() -> None:
    """Hides advice that does not apply here; real warnings of the libraries stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Windows of a memory map are read faster than a worker process can hand them over.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Held-out sums are already those of all ranks when they are logged.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .self.log.*sync_dist.*")
    warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.` is deprecated.*")


def _flags(verb: str, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the few options that are not settings from those that are."""
    parser = _FlagParser(prog=f"llm-train {verb}", allow_abbrev=False, add_help=False)
    if verb == "report":
        parser.add_argument("run", help="run directory, for instance runs/quickstart")
    elif verb == "generate":
        parser.add_argument("checkpoint", help="checkpoint or run directory")
        parser.add_argument("--prompt", default="", help="text to continue")
        parser.add_argument("--tokens", type=int, default=200, help="most tokens to add")
        parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
        parser.add_argument("--top-k", type=int, default=0, help="keep the k likeliest; 0 keeps all")
        parser.add_argument("--top-p", type=float, default=1.0, help="keep this much probability")
        parser.add_argument("--stop", default="", help="token text that ends the sample")
        parser.add_argument("--seed", type=int, default=0, help="same seed, same text")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    if verb != "report":
        parser.add_argument(
            "--allow-import",
            action="append",
            default=[],
            metavar="NAME",
            help="module that a class_path may import besides llm_train, torch and lightning",
        )
    if verb == "prepare":
        parser.add_argument("--force", action="store_true", help="replace what is there")
    elif verb == "fit":
        parser.add_argument("--resume", default="", metavar="auto|PATH", help="continue a run")
    elif verb == "validate":
        parser.add_argument("--checkpoint", default="auto", metavar="auto|PATH")
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        if verb in ("report", "generate"):
            sys.exit(0)
    flags, rest = parser.parse_known_args(arguments)
    if rest and verb in ("report", "generate"):
        options = [o for action in parser._actions for o in action.option_strings]
        raise ConfigError(f"llm-train {verb} has no option {rest[0]}; {_nearest(rest[0], options)}")
    return flags, rest


class _FlagParser(argparse.ArgumentParser):
    """Reports like everything else: one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


# --- settings -----------------------------------------------------------------------------------------


def load_settings(arguments: Sequence[str], allow_import: Sequence[str] = ()) -> Any:
    """Parses and instantiates a configuration.

    Args:
        arguments: as on the command line: ``-c FILE`` and ``--key=value``.
        allow_import: modules that a ``class_path`` may import besides our own, torch and lightning.

    Returns:
        ``Settings``.

    Raises:
        ConfigError: anything wrong with a key or value, in one line.
    """
    import jsonargparse
    from jsonargparse.typing import register_type
    from lightning.pytorch.cli import LightningCLI

    from llm_train.data.module import TokenData
    from llm_train.settings import Batch, CheckpointPolicy, Duration, Settings
    from llm_train.task import Task

    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*ALLOWED_IMPORTS, *allow_import],
        validate_defaults=False,
    )
    register_type(Duration, str, Duration.parse)
    jsonargparse.set_loader("yaml", _load_yaml_once, exceptions=(yaml.YAMLError,))
    arguments = _expand(list(arguments))
    _refuse_duplicates(arguments)

    class Cli(LightningCLI):
        """LightningCLI with our keys beside model, data and trainer."""

        def add_default_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--seed", type=int, default=1337, help="weights, order, dropout")
            parser.add_argument("--budget", type=Duration, required=True, help="length of the run")
            parser.add_argument(
                "--validate_every",
                type=Duration,
                default=Duration(0, "steps"),
                help="distance between validations; 0 steps: at the end only",
            )
            parser.add_argument("--batch", type=Batch, help="the global batch")
            parser.add_argument("--checkpoint", type=CheckpointPolicy, default=CheckpointPolicy())

        def _set_seed(self) -> None:
            """Weights, order and dropout are seeded where they are made."""

        def instantiate_classes(self) -> None:
            """Builds the parts, but not the Trainer: ``check`` must work without the devices."""
            self.config_init = self.parser.instantiate_classes(self.config)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*args parameter is intended to run.*")
            cli = Cli(
                Task,
                TokenData,
                args=arguments,
                run=False,
                save_config_callback=None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={"allow_abbrev": False, "exit_on_error": False, "prog": "llm-train"},
            )
    except argparse.ArgumentError as error:
        raise ConfigError(_one_line(str(error), arguments)) from error
    except ConfigError as error:
        raise ConfigError(_one_line(str(error), arguments)) from error
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(_one_line(f"{type(error).__name__}: {error}", arguments)) from error
    parts = cli.config_init
    text = cli.parser.dump(cli.config, skip_none=False)
    trainer = dict(parts.trainer)
    trainer["__defaults__"] = dict(cli.parser.get_defaults().trainer)
    configs = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "-c"]
    return Settings(
        seed=parts.seed,
        budget=parts.budget,
        validate_every=parts.validate_every,
        batch=parts.batch,
        checkpoint=parts.checkpoint,
        task=parts.model,
        data=parts.data,
        trainer=trainer,
        text=text,
        plain=yaml.safe_load(text),
        name=Path(configs[0]).stem if configs else "run",
    )


def _expand(arguments: list[str]) -> list[str]:
    """Brings every spelling of the configuration option to ``-c FILE``."""
    expanded: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--config":
            expanded.extend(["-c", value] if equals else ["-c"])
        elif argument.startswith("-c") and not argument.startswith("--") and len(argument) > 2:
            expanded.extend(["-c", argument[2:].removeprefix("=")])
        else:
            expanded.append(argument)
    for option, value in zip(expanded, expanded[1:], strict=False):
        if option == "-c" and not Path(value).is_file():
            raise ConfigError(f"-c {value}: no such file; configs/ holds the ready-made ones")
    return expanded


# --- YAML -----------------------------------------------------------------------------------------------


def _refuse_duplicates(arguments: list[str]) -> None:
    """A key written twice means that one of the two is ignored."""
    for option, value in zip(arguments, arguments[1:], strict=False):
        if option != "-c":
            continue
        try:
            node = yaml.compose(Path(value).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            where = " ".join(str(error).split())
            raise ConfigError(f"{value} is not valid YAML: {where}") from error
        if node is not None:
            _walk(node, (), value)


def _walk(node: yaml.Node, path: tuple[str, ...], file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, child in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in seen:
                dotted = ".".join([*path, name])
                raise ConfigError(
                    f"{dotted} is written twice in {file}, in lines {seen[name]} and {line}; remove one"
                )
            seen[name] = line
            _walk(child, (*path, name), file)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _walk(child, (*path, str(index)), file)


def _load_yaml_once(text: str) -> Any:
    from jsonargparse._loaders_dumpers import yaml_load

    return yaml_load(text)


# --- errors -----------------------------------------------------------------------------------------------


def _one_line(message: str, arguments: Sequence[str]) -> str:
    return " ".join(message.split())


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


_ = re
if __name__ == "__main__":
    main()
