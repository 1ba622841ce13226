"""Several token sources as one: each sample of a run comes from one of them.

Which one is arithmetic on the sample's index (``apportion``), and so is the sample's number among
those of its source. A source therefore goes through its own windows in its own order, epoch by
epoch, as if it were alone, and the position of a run is still one integer.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from llm_train.context import Context, Part
from llm_train.data.apportion import Apportionment, Shares, whole_shares
from llm_train.data.base import HELD_OUT, NO_TOKEN, Ids
from llm_train.data.fill_in_the_middle import FillInTheMiddle
from llm_train.data.token_source import TokenSource, Windows
from llm_train.data.windows import MixedWindows
from llm_train.errors import ConfigError, check_choices
from llm_train.units import Duration


@dataclass(frozen=True, kw_only=True)
class Change:
    """Other weights from a token of the run on.

    Attributes:
        after: tokens of training before it.
        weights: of each source by name; a source that is left out is not read any more.
    """

    after: Duration
    weights: dict[str, float]

    def __post_init__(self) -> None:
        if self.after.unit != "tokens" or self.after.count < 1:
            raise ConfigError(
                f"after={self.after} must be 1 or more tokens, as in '50B tokens'; for weights "
                "from the beginning on, set the mixture's own"
            )


@dataclass(frozen=True, kw_only=True)
class Mixture(TokenSource):
    """Mixes sources sample by sample, exact to within one sample a source over any prefix.

    Attributes:
        sources: token sources by name, all of one tokenizer.
        weights: of each source by name; none: 1 for each.
        unit: what weights count. share: samples; epochs: passes over a source, so that 1 for each
            reads sources by their size, and 3 for one reads it three times while others are read
            once.
        temperature: shares are raised to 1/temperature; above 1 makes them more alike (Raffel et
            al., arXiv:1910.10683, section 3.5.2).
        changes: other weights later in the run, in the order of their tokens.
        fill_in_the_middle: documents whose middle comes last.
    """

    sources: dict[str, TokenSource]
    weights: dict[str, float] = field(default_factory=dict)
    unit: Literal["share", "epochs"] = "share"
    temperature: float = 1.0
    changes: list[Change] = field(default_factory=list)
    fill_in_the_middle: FillInTheMiddle = field(default_factory=FillInTheMiddle)

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.sources or any(not name or set("/.") & set(name) for name in self.sources):
            raise ConfigError(
                f"sources={list(self.sources)} must be one or more, with names without '/' and "
                "'.', which metrics will carry"
            )
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be above 0; 1 has no effect")
        weights_of = (self.weights, *(change.weights for change in self.changes))
        for weights in (*weights_of, self.fill_in_the_middle.rates):
            if unknown := weights.keys() - self.sources.keys():
                raise ConfigError(
                    f"weights or rates name {', '.join(sorted(unknown))}, which is none of "
                    f"{', '.join(self.sources)}; correct the name or add the source"
                )
        for weights in weights_of:
            values = weights.values()
            if not all(0 <= value < math.inf for value in values) or (weights and not any(values)):
                raise ConfigError(f"weights={weights} must be 0 or more, and one of them above 0")
        places = [change.after.count for change in self.changes]
        if places != sorted(set(places)):
            raise ConfigError(f"changes come after {places} tokens; list them in that order")
        # A part of the configuration is frozen, and this follows from it.
        object.__setattr__(self, "unmasked", all(s.unmasked for s in self.sources.values()))

    def parts(self) -> Iterator[Part]:
        """The sources."""
        yield from self.sources.values()

    def problems(self, context: Context) -> Iterator[str]:
        """Also changes that no step comes to."""
        yield from super().problems(context)
        last = context.derive().total_tokens - context.batch.sequence
        for index, change in enumerate(self.changes):
            if change.after.count > last:
                yield (
                    f"data.source.init_args.changes[{index}].after={change.after} is no earlier "
                    f"than the end of the run, {last + context.batch.sequence} tokens, so that its "
                    "weights have no effect; shorten it, remove it, or raise budget"
                )

    def check(self) -> list[str]:
        """Reports sources that cannot be read, and sources of different tokenizers."""
        found = [f"{name}: {line}" for name, s in self.sources.items() for line in s.check()]
        if found:
            return found
        texts = {name: s.tokenizer_text() for name, s in self.sources.items()}
        known = {text: name for name, text in texts.items() if text}
        if len(known) > 1:
            return [
                f"sources {' and '.join(known.values())} have different tokenizers, so that the "
                "same id means different text; prepare all of them with one (TokenizerFile)"
            ]
        if any(self.fill_in_the_middle.rates.values()):
            try:
                self.fill_in_the_middle.sentinels(self.tokenizer_text())
            except ConfigError as error:
                return [f"data.source.{error}"]
        return [
            f"data.source.fill_in_the_middle.rates.{name}={rate} needs the token that ends a "
            f"document, and source {name} knows none; leave {name} out of rates, or prepare it "
            "with a tokenizer that has one"
            for name, rate in self.fill_in_the_middle.rates.items()
            if rate and self.sources[name].end_of_text() == NO_TOKEN
        ]

    @property
    def prepared(self) -> bool:
        """Whether all sources are."""
        return all(source.prepared for source in self.sources.values())

    def tokenizer_text(self) -> str:
        """That of any source which knows it."""
        return next(filter(None, (s.tokenizer_text() for s in self.sources.values())), "")

    def _fingerprints(self) -> list[object]:
        known = {name: source.fingerprint() for name, source in self.sources.items()}
        return [known, asdict(self.fill_in_the_middle)]

    def _asked(self) -> str:
        changes = {str(change.after): change.weights for change in self.changes}
        return json.dumps([self.weights, self.unit, self.temperature, changes])

    def fingerprint(self) -> str:
        """Of sources, weights and their changes."""
        return _hash([self._fingerprints(), self._asked()])

    def past(self, samples: int, sequence: int) -> str:
        """Of sources, and which of them the first samples came from: weights may change later."""
        return _hash([self._fingerprints(), self.order(sequence).digest(samples)])

    def identity(self) -> dict[str, str]:
        """What is known of each source, at least its fingerprint, and the weights."""
        facts = {
            name: source.identity() or {"tokens": source.fingerprint()[:12]}
            for name, source in self.sources.items()
        }
        known = [(name, *fact) for name, each in facts.items() for fact in each.items()]
        return {f"{name}: {key}": value for name, key, value in known} | {
            "weights": self._asked(),
            "fill_in_the_middle": json.dumps(asdict(self.fill_in_the_middle)),
        }

    def remedy(self, samples: int, sequence: int) -> str:
        """Weights may change from some sample on, since the order before it is fixed."""
        stage = [stage for stage in self._stages(sequence) if stage.first <= samples][-1]
        period = sum(stage.counts)
        first = max(samples, stage.first + 3 * period) + 2 * period + 1
        return (
            "put the old data and weights back, and let other weights follow in "
            f"data.source.init_args.changes, after '{first * sequence} tokens' or later; or start "
            "a new run"
        )

    def shares(self, weights: Mapping[str, float], sequence: int) -> tuple[int, ...]:
        """Samples of each source among their sum; see ``whole_shares``."""
        values = [weights.get(name, 0.0) if weights else 1.0 for name in self.sources]
        if self.unit == "epochs":
            places = [_places(name, source, sequence) for name, source in self.sources.items()]
            values = [value * size for value, size in zip(values, places, strict=True)]
        if self.temperature != 1:
            values = [value ** (1 / self.temperature) for value in values]
        return whole_shares(values)

    def _stages(self, sequence: int) -> list[Shares]:
        found = {0: self.shares(self.weights, sequence)}
        for change in self.changes:
            found[math.ceil(change.after.count / sequence)] = self.shares(change.weights, sequence)
        return [Shares(first, counts) for first, counts in found.items()]

    def order(self, sequence: int) -> Apportionment:
        """Which source each sample comes from."""
        return Apportionment(self._stages(sequence))

    def realised(self, samples: int, sequence: int) -> dict[str, float]:
        """Of each source: its share of the samples so far, and how often it was read."""
        found: dict[str, float] = {}
        counts = self.order(sequence).counts(samples).tolist()
        for (name, source), count in zip(self.sources.items(), counts, strict=True):
            found[f"data/{name}/share"] = count / max(1, samples)
            if source.description().get("train_tokens"):
                found[f"data/{name}/epochs"] = count * sequence / _places(name, source, sequence)
        return found

    def vocab_size(self) -> int:
        """The largest."""
        return max(source.vocab_size() for source in self.sources.values())

    def end_of_text(self) -> int:
        """That of the sources, if they agree."""
        found = {source.end_of_text() for source in self.sources.values()}
        return found.pop() if len(found) == 1 else NO_TOKEN

    def token_bytes(self) -> Ids | None:
        """Those of any source which knows them; unknown where one does not."""
        found = [source.token_bytes() for source in self.sources.values()]
        return None if any(lengths is None for lengths in found) else found[0]

    def train_windows(self, sequence: int, seed: int) -> Windows:
        """Windows of all sources, each in its own order."""
        windows = [
            self.fill_in_the_middle.over(
                name,
                source.train_windows(sequence, seed),
                tokenizer=self.tokenizer_text(),
                end_of_text=source.end_of_text(),
                order=f"llm_train/{seed}/{source.fingerprint()}",
            )
            for name, source in self.sources.items()
        ]
        return MixedWindows(windows, self.order(sequence), list(self.sources))

    def called(self, name: str) -> TokenSource:
        """One of the sources, or of theirs."""
        first, _, rest = name.partition("/")
        return self.sources[first].called(rest)

    def _held_out(self) -> dict[str, tuple[TokenSource, str]]:
        return {
            name if inner == HELD_OUT else f"{name}/{inner}": (source, inner)
            for name, source in self.sources.items()
            for inner in source.held_out_sets()
        }

    def held_out_sets(self) -> tuple[str, ...]:
        """Those of all sources: SOURCE for what its split holds out, else SOURCE/SET."""
        return tuple(self._held_out())

    def window_facts(self, sequence: int) -> dict[str, str | int | float]:
        """Those of the sources, and the share of each at the beginning and after each change."""
        weights = [self.weights, *(change.weights for change in self.changes)]
        stages = [self.shares(each, sequence) for each in weights]
        after = ["", *(f" after {change.after}" for change in self.changes)]
        found: dict[str, str | int | float] = {}
        for index, (name, source) in enumerate(self.sources.items()):
            shares = [f"{counts[index] / sum(counts):.6g}" for counts in stages]
            shown = ", ".join(map("".join, zip(shares, after, strict=True)))
            tokens = source.description().get("train_tokens")
            found[name] = f"{shown} of the samples; {tokens} tokens"
            found |= {f"{name}_{k}": v for k, v in source.window_facts(sequence).items()}
        return found

    def held_out_windows(self, sequence: int, name: str = HELD_OUT) -> Windows:
        """Windows of one set of one source."""
        source, inner = self._held_out()[name]
        return source.held_out_windows(sequence, inner)

    def description(self) -> dict[str, str | int | float | None]:
        """Sizes in all."""
        facts = [source.description() for source in self.sources.values()]
        return {
            "train_tokens": sum(int(fact.get("train_tokens") or 0) for fact in facts),
            "vocab_size": self.vocab_size(),
            "tokenizer": facts[0].get("tokenizer", ""),
        }


def _places(name: str, source: TokenSource, sequence: int) -> int:
    """Tokens of one pass over a source; packed windows have places for more than they hold."""
    if isinstance(packed := source.window_facts(sequence).get("packed_windows"), int):
        return packed * sequence
    count = source.description().get("train_tokens")
    if not isinstance(count, int):
        raise ConfigError(f"unit=epochs: source {name} does not say how many tokens it has")
    return count


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
