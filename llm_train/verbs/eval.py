"""Puts the tasks of lm-evaluation-harness to a checkpoint."""

import argparse
import json
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class Evaluate(Verb):
    """Scores a checkpoint as it is; needs the extra eval."""

    reads = "checkpoint"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which checkpoint, and which tasks."""
        parser.add_argument("checkpoint", help="checkpoint or run directory")
        parser.add_argument("--tasks", required=True, help="names or YAML files, with commas")
        parser.add_argument("--folder", default="", metavar="PATH", help="of tasks in YAML files")
        parser.add_argument("--limit", type=int, default=0, help="most documents of a task")
        parser.add_argument("--batch", type=int, default=8, help="texts of one forward (8)")
        parser.add_argument(
            "--json", default="", metavar="OUT_FILE", help="also write the scores here"
        )
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Prints the metrics of each task with their standard errors."""
        from llm_train.errors import ConfigError, check_at_least, missing_package
        from llm_train.run.pretrained import load_checkpoint
        from llm_train.runtime.terminal import say, section

        if missing := missing_package("lm_eval", "eval", "llm-train eval"):
            raise ConfigError(missing)
        check_at_least(flags, 1, "batch", prefix="--")
        check_at_least(flags, 0, "limit", prefix="--", hint="; 0 takes all documents")
        pretrained = load_checkpoint(flags.checkpoint, load, flags.device)
        from llm_train.evaluation import harness  # whose imports take seconds

        tasks = harness.loaded([name for name in flags.tasks.split(",") if name], flags.folder)
        scores = harness.examine(
            pretrained.subject, tasks, batch=flags.batch, limit=flags.limit, bootstraps=100
        )
        say(section(str(pretrained.path), scores))
        if flags.json:
            Path(flags.json).write_text(json.dumps(scores, indent=1) + "\n")
