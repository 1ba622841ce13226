"""Writes docs/configuration.md and the README's table of verbs from the code: ``make docs``.

With ``--check`` it only compares.

Every name, type, default and sentence comes from signatures and docstrings; a test writes the page
again and compares. The page lists as ``class_path`` every class that the modules of a family's
folder derive from its base.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser

from llm_train.discovery import concrete

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
README = ROOT / "README.md"

# YAML key, package, and the name of the base class of what the key takes.
FAMILIES = (
    ("model.network", "llm_train.model.network", "Network"),
    ("model.network.init_args.rotary_scaling", "llm_train.model.network", "RotaryScaling"),
    ("model.loss", "llm_train.model.loss", "Loss"),
    ("model.optimizer", "llm_train.model.optimizer", "Optimizer"),
    ("model.schedule", "llm_train.model.schedule", "Schedule"),
    ("model.recompute", "llm_train.model.recompute", "Recompute"),
    ("data.source", "llm_train.data", "TokenSource"),
    ("data.recipe", "llm_train.data", "Recipe"),
    ("data.recipe.init_args.corpus", "llm_train.data", "Corpus"),
    ("data.recipe.init_args.corpus.init_args.filters", "llm_train.data", "Filter"),
    ("data.recipe.init_args.tokenizer", "llm_train.data", "Tokenizer"),
    ("data.recipe.init_args.split", "llm_train.data", "Split"),
    ("trainer.strategy", "llm_train.trainer.strategy", "Strategy"),
    ("trainer.logger", "llm_train.trainer.logger", "Logger"),
)

# Every run has these, so nobody names them.
ALWAYS_ON = ("JSONLMetrics",)

# The least that a run needs; everything else on the page is a default.
SMALLEST = """\
budget: 1000 steps
batch: {tokens: 4096, sequence: 128, per_device: 8}
model:
  network:
    class_path: Transformer
    init_args: {vocab_size: 256, layers: 2, width: 64, heads: 2, max_sequence: 128}
  optimizer: {class_path: AdamW, init_args: {learning_rate: 0.001}}
  schedule: {class_path: WarmupCosine, init_args: {warmup: 100 steps}}
data:
  source: {class_path: RandomTokens}
"""

HONOURED = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "precision",
    "gradient_clip_val",
    "log_every_n_steps",
    "logger",
    "callbacks",
    "default_root_dir",
)


def usable(package: str, base: str) -> list[type]:
    """Lists the classes of a family that ``class_path`` may name by their short names."""
    family = importlib.import_module(package)
    root = getattr(family, base, None)
    if root is None:
        from lightning.pytorch import loggers

        root = getattr(loggers, base)
    ours = [each for each in concrete(root) if each.__module__.startswith(f"{package}.")]
    return [each for each in ours if each.__name__ not in ALWAYS_ON]


def type_text(annotation: Any) -> str:
    """Writes an annotation as a reader would write it."""
    text = re.sub(r"\b(?:[a-z_]\w*\.)+", "", inspect.formatannotation(annotation))
    choices = re.fullmatch(r"Literal\[(.*)\]", text)
    if choices:
        return " \\| ".join(part.strip().strip("'\"") for part in choices[1].split(","))
    return text.replace("Duration", "duration").replace("|", "\\|")


def default_text(value: Any) -> str:
    """Writes a default value as YAML would write it."""
    if value is inspect.Parameter.empty:
        return "required"
    if repr(value) == "<factory>":  # what a dataclass shows of an empty mapping
        return "`{}`"
    if dataclasses.is_dataclass(value):
        return f"`{type(value).__name__}`"
    if isinstance(value, tuple) and len(value) > 3:
        return "see there"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return '`""`' if value == "" else f"`{value}`".replace("|", "\\|")


def sentences(text: str | None) -> str:
    """Joins running text into one line that is safe in a table."""
    joined = " ".join((text or "").replace("``", "`").split())
    return joined.replace("|", "\\|")


def table(kind: Any) -> Iterator[str]:
    """Yields a table of the arguments of a class: name, type, default, meaning."""
    meanings = {
        parameter.arg_name: parameter.description
        for parameter in docstring_parser.parse(inspect.getdoc(kind) or "").params
    }
    parameters = list(inspect.signature(kind, eval_str=True).parameters.values())
    if not parameters:
        yield "No arguments."
        return
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for each in parameters:
        assert meanings.get(each.name), f"{kind.__name__}.{each.name} is not documented"
        yield (
            f"| `{each.name}` | {type_text(each.annotation)} | {default_text(each.default)} "
            f"| {sentences(meanings[each.name])} |"
        )


def about(kind: Any) -> str:
    """Returns the docstring without its sections, with formulas as they are."""
    parsed = docstring_parser.parse(inspect.getdoc(kind) or "")
    parts = [parsed.short_description or "", parsed.long_description or ""]
    text = "\n\n".join(part for part in parts if part)
    kept = re.split(r"\n\s*(?=>>> )", text)[0]
    return kept.replace("``", "`").strip()


def top_level() -> Iterator[str]:
    """Yields a table of the keys outside model, data and trainer, with the defaults of a parse."""
    from llm_train.cli import load_settings
    from llm_train.runtime import yaml12
    from llm_train.settings import Settings

    example = yaml12.load(SMALLEST)
    arguments = [f"--budget={example['budget']}"]
    for section in ("batch", "model", "data"):
        arguments += [f"--{section}.{key}={value}" for key, value in example[section].items()]
    plain = load_settings(arguments).plain
    meanings = {
        parameter.arg_name: parameter.description
        for parameter in docstring_parser.parse(inspect.getdoc(Settings) or "").params
    }
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key, kind in (("seed", "int"), ("budget", "duration"), ("validate_every", "duration")):
        default = "required" if key == "budget" else f"`{plain[key]}`"
        yield f"| `{key}` | {kind} | {default} | {sentences(meanings[key])} |"


def trainer_section() -> Iterator[str]:
    """Yields the Trainer arguments that may be set, and those that another key replaces."""
    from llm_train.check import trainer_rules
    from llm_train.trainer.strategy import known_words

    yield textwrap.fill(
        "Lightning's own Trainer arguments. These are the usual ones: "
        + ", ".join(f"`{key}`" for key in HONOURED)
        + ". Others that Lightning knows are passed on as they are, except those in the table "
        "below, which would have no effect or would break an invariant and are refused.",
        width=100,
        break_on_hyphens=False,
    )
    yield ""
    yield f"`trainer.strategy` also takes these words: {_words(tuple(known_words()))}."
    yield ""
    precisions = _words(trainer_rules.PRECISIONS)
    yield f"`trainer.precision` is one of {precisions}; unset means `32-true`."
    yield ""
    yield "| refused argument | instead |"
    yield "|---|---|"
    for key, way_out in trainer_rules.REPLACED.items():
        if way_out is not None:
            yield f"| `trainer.{key}` | {sentences(way_out)} |"
    yield ""
    yield "| refused callback | why, or what instead |"
    yield "|---|---|"
    for key, way_out in trainer_rules._FORBIDDEN_CALLBACKS.items():
        yield f"| `{key}` | {sentences(way_out)} |"


def _words(values: tuple[str, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def page() -> str:
    """Returns the whole page."""
    from llm_train.data.preparation import DataOptions
    from llm_train.exchange.warm_start import WarmStart
    from llm_train.model.task import Task
    from llm_train.runtime.device_options import DeviceOptions
    from llm_train.runtime.watch.verdict import WatchOptions
    from llm_train.settings import CheckpointPolicy
    from llm_train.units import Batch, Scaling

    lines = [
        "# Configuration reference",
        "",
        "Written from the code by `make docs`; do not edit.",
        "",
        "A key takes the classes listed under it, as `class_path` and `init_args`; a class of your",
        "own is named with its module ([extending](extending.md)). Several `-c` files are merged",
        "from left to right, and `--key=value` wins over all of them. A *duration* is a count with",
        "its unit: `2000 steps`, `1.5B tokens`, with k, M, B or T for powers of a thousand.",
        "",
        "The smallest configuration:",
        "",
        "```yaml",
        *SMALLEST.splitlines(),
        "```",
        "",
        "## Top level",
        "",
        *top_level(),
        "",
        "## batch",
        "",
        about(Batch),
        "",
        *table(Batch),
        "",
        "### batch.scaling",
        "",
        about(Scaling),
        "",
        *table(Scaling),
        "",
        "## checkpoint",
        "",
        about(CheckpointPolicy),
        "",
        *table(CheckpointPolicy),
        "",
        "## device",
        "",
        about(DeviceOptions),
        "",
        *table(DeviceOptions),
        "",
        "## watch",
        "",
        about(WatchOptions),
        "",
        *table(WatchOptions),
        "",
        "## init_from",
        "",
        about(WarmStart),
        "",
        *table(WarmStart),
        "",
        "## model",
        "",
        about(Task),
        "",
        *table(Task),
        "",
        "## data",
        "",
        about(DataOptions),
        "",
        *table(DataOptions),
        "",
        "## trainer",
        "",
        *trainer_section(),
    ]
    for key, package, base in FAMILIES:
        lines += ["", f"## {key}", ""]
        for kind in usable(package, base):
            lines += [f"### {kind.__name__}", "", about(kind), "", *table(kind), ""]
        lines.pop()
    return "\n".join(lines) + "\n"


def readme() -> str:
    """The README with the verbs that there are."""
    from llm_train import verbs

    rows = [f"| `{name}` | {sentences(text)} |" for name, text in verbs.summaries().items()]
    text = README.read_text(encoding="utf-8")
    begin, end = "<!-- verbs: written by make docs -->\n", "<!-- end of verbs -->"
    before, after = text.split(begin)[0], text.split(end)[1]
    return (
        before
        + begin
        + "\n".join(["| verb | what it does |", "|---|---|", *rows, ""])
        + end
        + after
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    for file, text in ((PAGE, page()), (README, readme())):
        if not check:
            file.write_text(text, encoding="utf-8")
            print(f"wrote {file}", file=sys.stderr)
        elif file.read_text(encoding="utf-8") != text:
            sys.exit(f"{file} is not what the code says; run `make docs`")
