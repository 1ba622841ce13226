"""Puts the tasks of lm-evaluation-harness to a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class Evaluate(Verb):
    """Scores a checkpoint as it is; needs the extra eval."""

    takes_settings = False

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which checkpoint, and which tasks."""
        parser.add_argument("checkpoint", help="checkpoint or run directory")
        parser.add_argument("--tasks", required=True, help="names or YAML files, with commas")
        parser.add_argument("--folder", default="", metavar="PATH", help="of tasks in YAML files")
        parser.add_argument("--limit", type=int, default=0, help="most documents of a task")
        parser.add_argument("--examples", type=int, default=-1, help="in a prompt; -1: task's own")
        parser.add_argument("--batch", type=int, default=8, help="texts of one forward (8)")
        parser.add_argument("--json", default="", metavar="FILE", help="also write the scores here")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Prints the metrics of each task with their standard errors."""
        from llm_train.data.base import NO_TOKEN
        from llm_train.errors import ConfigError
        from llm_train.evaluation.installed import missing_harness
        from llm_train.evaluation.subject import Subject
        from llm_train.run.pretrained import load_checkpoint
        from llm_train.runtime.terminal import say, section

        for problem in missing_harness("llm-train eval"):
            raise ConfigError(problem)
        if flags.batch < 1:
            raise ConfigError(f"--batch={flags.batch} must be at least 1; 8 is usual")
        found = load_checkpoint(flags.checkpoint, load, flags.device)
        end, task = found.end_of_text(), found.settings.task
        subject = Subject(
            network=found.network,
            tokenizer=found.tokenizer,
            end_of_text=NO_TOKEN if end is None else end,
            documents=task.documents,
            positions=task.network_config.max_positions,
            device=next(found.network.parameters()).device,
        )
        # Imports of the harness take seconds.
        from llm_train.evaluation.harness import Examination

        tasks = [name for name in flags.tasks.split(",") if name]
        examination = Examination.of(
            tasks, folder=flags.folder, limit=flags.limit, examples=flags.examples
        )
        scores = examination.scores(subject, batch=flags.batch, errors=True)
        say(section(f"{found.path}", scores))
        if flags.json:
            Path(flags.json).write_text(json.dumps(scores, indent=1) + "\n")
        return 0
