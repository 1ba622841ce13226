"""Looks for what would end a run later: machine, run folder, data, services, one real step."""

import argparse

from llm_train.verbs.base import Load, Verb


class Doctor(Verb):
    """Tries everything that a run needs, where it would run, and leaves nothing behind."""

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Prints a line for each finding; 2 where one failed."""
        settings = load(flags.settings)

        from llm_train.doctor import examine
        from llm_train.errors import LLMTrainError
        from llm_train.runtime.launch import find_launch
        from llm_train.runtime.terminal import say

        first = find_launch().rank == 0
        failed = 0
        for finding in examine(settings, local=first):
            failed += finding.state == "failed"
            if finding.state == "failed" and not first:
                raise LLMTrainError(f"{finding.about}: {finding.text}; {finding.remedy}")
            say(f"{finding.state:8} {finding.about:14} {finding.text}")
            if finding.remedy:
                say(f"{'':23} -> {finding.remedy}")
        say(f"\n{failed} failed" if failed else "\nnothing failed")
        return 2 if failed else 0
