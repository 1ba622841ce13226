"""What became of the documents of a corpus: how many were kept, and how many were not and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llm_train.data.base import Skipped
from llm_train.errors import DataError


@dataclass(kw_only=True)
class Tally:
    """Counts of documents.

    Attributes:
        kept: documents that were given out.
        unexpected: documents that were left out although nobody asked for it.
        skipped: documents that were left out, by reason.
        examples: the first of each reason: its place, and what was found.
    """

    kept: int = 0
    unexpected: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """All of them together, in the order of the corpus."""
        whole = cls()
        for tally in tallies:
            whole.kept += tally.kept
            whole.unexpected += tally.unexpected
            for reason, count in tally.skipped.items():
                whole.skipped[reason] = whole.skipped.get(reason, 0) + count
            whole.examples = {**tally.examples, **whole.examples}
        return whole

    def skip(self, item: Skipped) -> None:
        """Counts something that is left out."""
        self.skipped[item.reason] = self.skipped.get(item.reason, 0) + 1
        self.unexpected += not (item.intended or item.reason == "empty")
        self.examples.setdefault(item.reason, ": ".join(filter(None, (item.key, item.detail))))

    def require_readable(self, most: float, name: str = "the corpus") -> None:
        """Refuses a corpus of which too much cannot be read.

        Args:
            most: part of the documents that may be left out although nobody asked for it.
            name: of the corpus.

        Raises:
            DataError: with each reason, its count, and one example.
        """
        reasons = "; ".join(
            f"{k}: {v}" for k, v in skipped_lines(self.skipped, self.examples).items()
        )
        if not self.kept:
            raise DataError(
                f"{name} has no text ({reasons or 'it has no documents'}); check its paths, "
                "its format and the field that holds the text"
            )
        total = self.kept + self.unexpected
        if self.unexpected > most * total:
            raise DataError(
                f"{self.unexpected} of {total} documents cannot be read ({reasons}), which is more "
                f"than max_skipped={most}; correct the corpus, or accept it with data.recipe."
                f"init_args.max_skipped={min(1.0, 1.1 * self.unexpected / total):.2g}"
            )


def skipped_lines(skipped: Mapping[str, int], examples: Mapping[str, str]) -> dict[str, str]:
    """Each reason, with how often and the first place."""
    return {
        reason: f"{count:,}, the first {examples[reason]}" if reason in examples else f"{count:,}"
        for reason, count in sorted(skipped.items())
    }
