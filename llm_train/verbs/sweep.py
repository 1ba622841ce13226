"""Trains once for each choice of chosen keys, and compares the results."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from llm_train.errors import ConfigError
from llm_train.preset_files import resolved
from llm_train.verbs.base import Load, Verb


class Sweep(Verb):
    """Starts a ``fit`` for each trial, one after another, and takes up where it was stopped."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """What to vary, and where the runs go."""
        parser.add_argument("spec", help="what is varied and how, a YAML file; it comes first")
        parser.add_argument(
            "--out", default="", metavar="OUT_PATH", help="default: runs/NAME of SPEC"
        )

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Returns 1 if a trial has no result, which the next start tries again."""
        from llm_train import check
        from llm_train.runtime.terminal import say, section
        from llm_train.sweep import results, trial
        from llm_train.sweep.spec import Spec, proposals, require_startable

        path = Path(resolved(flags.spec))
        spec = Spec.read(path)
        for word in flags.settings:
            if (key := word.partition("=")[0].removeprefix("--")) in spec.keys:
                raise ConfigError(f"--{key} is what {flags.spec} varies; leave it out of one")
        out = Path(flags.out or f"runs/{path.stem}")
        words = [f"-c{file}" for file in spec.config] + flags.settings
        imports = [f"--allow-import={name}" for name in flags.allow_import]
        trials: list[trial.TrialResult] = []
        proposed = proposals(spec)
        values = next(proposed, None)
        with TemporaryDirectory() as folder:
            require_startable(
                spec,
                lambda values: check.require_sound(
                    load(trial.arguments(Path(folder), values, words))
                ),
            )
        while values is not None:
            found = trial.run(out, values, [*words, *imports], spec.metric)
            trials.append(found)
            chosen = ", ".join(
                f"{k.rpartition('.')[2]}={results.shown(v)}" for k, v in values.items()
            )
            result = "failed" if found.why else f"{spec.metric} {found.loss:.4f}"
            say(f"{len(trials):3}  {result}  {chosen}  {found.why}".rstrip())
            try:
                values = proposed.send(found.loss)
            except StopIteration:
                break
        say(section("sweep", results.write(out, spec, trials)))
        return int(any(found.why for found in trials))
