"""The cells of ``scripts/rehearse.py``: all pairs of choices, and pairs that must be refused.

A cell takes one value of each factor. All combinations would be two million; nearly every fault of
software needs no more than two choices to meet (Kuhn, Wallace, Gallo, IEEE TSE 30(6), 2004), so a
greedy search finds few cells in which every two values meet somewhere. Two values that ``check``
refuses would hide the pairs alongside them in their cell. ``REFUSED`` names them; each becomes a
cell of its own, which fails if it is not refused.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]  # dotted keys of the YAML and what stands there; None takes a key away
Pair = frozenset[tuple[str, str]]

VOCABULARY = 61
STEPS = 16
RESUMED_STEPS = 23  # where a resumed run ends
LOG_EVERY, SAVE_EVERY, VALIDATE_EVERY = 4, 5, 8
MATRIX_WIDTH = 128  # float8 and state of 8 bits need whole blocks


def part(class_path: str, **arguments: Any) -> Values:
    """A class and its arguments."""
    return {"class_path": class_path, "init_args": arguments}


def _strategy(class_path: str, **arguments: Any) -> Values:
    return {"trainer.strategy": part(class_path, **arguments)}


def _optimizer(class_path: str, **arguments: Any) -> Values:
    return {"model.optimizer": part(class_path, learning_rate=0.01, **arguments)}


def _float8(recipe: str) -> Values:
    return {"trainer.precision": "bf16-mixed", "model.float8": recipe}


WHOLE_BATCH = {"batch.per_device": 8}  # one micro-batch a step

BASE: Values = {
    "seed": 7,
    "budget": f"{STEPS} steps",
    "validate_every": f"{VALIDATE_EVERY} steps",
    "batch": {"tokens": 128, "sequence": 16, "per_device": 2},
    "checkpoint": {"every": f"{SAVE_EVERY} steps", "keep_last": 2},
    "model.network": part(
        "Transformer",
        vocab_size=VOCABULARY,
        layers=2,
        width=MATRIX_WIDTH,
        heads=2,
        max_sequence=16,
        dropout=0.0,
    ),
    "model.schedule": part("WarmupCosine", warmup="2 steps"),
    "trainer.accelerator": "gpu",
    "trainer.devices": 1,
    "trainer.gradient_clip_val": 1.0,
    "trainer.log_every_n_steps": LOG_EVERY,
}

# The first value of each factor is the plain one, which a refused pair stands among.
FACTORS: dict[str, dict[str, Values]] = {
    "strategy": {
        "single": {},
        "ddp": _strategy("DDP"),
        "ddp-deterministic": _strategy("DDP", reduction="deterministic"),
        "fsdp": _strategy("FSDP"),
        "fsdp-kept": _strategy("FSDP", reshard_after_forward=False),
        "fsdp-offload": _strategy("FSDP", offload=True),
        "fsdp-deterministic": _strategy("FSDP", reduction="deterministic"),
        "zero1": _strategy("ZeRO", stage=1),
        "zero2": _strategy("ZeRO", stage=2),
        "zero2-offload": _strategy("ZeRO", stage=2, offload_optimizer="cpu"),
        "zero3": _strategy("ZeRO", stage=3),
        "zero3-offload": _strategy(
            "ZeRO", stage=3, offload_optimizer="cpu", offload_parameters="cpu"
        ),
        # These need more ranks than one.
        "hybrid": _strategy("FSDP", replicas=2),
        "tensor": _strategy("FSDP", tensor=2),
        "local-sgd": _strategy("LocalSGD", every=1),
    },
    "precision": {
        "mixed": {"trainer.precision": "bf16-mixed"},
        "fp32": {"trainer.precision": "32-true"},
        "bf16": {"trainer.precision": "bf16-true"},
        "half": {"trainer.precision": "16-mixed"},
        "rowwise": _float8("rowwise"),
        "tensorwise": _float8("tensorwise"),
    },
    "optimizer": {
        "adamw": _optimizer("AdamW"),
        "unfused": _optimizer("AdamW", fused="off"),
        "muon": _optimizer("MuonAdamW", fused="off"),
        "8bit": _optimizer("LowBitAdamW", state="8bit"),
        "16bit": _optimizer("LowBitAdamW", state="bf16"),
        "backward": {
            **_optimizer("AdamW"),
            **WHOLE_BATCH,
            "model.update": "backward",
            "trainer.gradient_clip_val": None,
        },
    },
    "compile": {
        "none": {},
        "blocks": {"model.compile": "blocks"},
        "network": {"model.compile": "network"},
        "graphs": {"model.compile": "graphs", **WHOLE_BATCH},
    },
    "recompute": {
        "keep": {},
        "every-block": {"model.recompute": part("EveryBlock")},
        "every-second": {"model.recompute": part("EveryNth", n=2)},
        "selective": {"model.recompute": part("Selective")},
    },
    "loss": {
        "plain": {},
        "chunked": {"model.loss": part("ChunkedCausalLM", chunk_tokens=8)},
        "z-loss": {"model.loss": part("CausalLM", z_loss=1e-4)},
        "ignored": {"model.loss": part("CausalLM", ignore_index=5)},
    },
    "attention": {
        name: {} if name == "auto" else {"model.attention": name}
        for name in ("auto", "cudnn", "flash", "efficient")
    },
    "extra": {
        "bare": {},
        "profile": {},  # --profile
        "average": {"trainer.callbacks": [part("EMA", decay=0.9)]},
        "workers": {"data.workers": 2},
        "whole": WHOLE_BATCH,
        "learned": {"model.network.init_args.positions": "learned"},
    },
    "then": {"resume": {}, "validate": {}, "generate": {}},
}

_ALONE = ("hybrid", "tensor", "local-sgd")
_ZERO = tuple(name for name in FACTORS["strategy"] if name.startswith("zero"))
_FSDP = tuple(name for name in FACTORS["strategy"] if name.startswith("fsdp"))
_DETERMINISTIC = ("ddp-deterministic", "fsdp-deterministic")
_FP8 = ("rowwise", "tensorwise")
_STRATEGIES = tuple(name for name in FACTORS["strategy"] if name not in ("single", *_ALONE))

# Values of one factor, values of another: each of these with each of those is refused.
REFUSED: tuple[tuple[str, tuple[str, ...], str, tuple[str, ...]], ...] = (
    ("strategy", _ALONE, "precision", ("mixed",)),
    ("strategy", _STRATEGIES, "compile", ("graphs",)),
    ("strategy", (*_FSDP, *_ZERO), "compile", ("network",)),
    ("strategy", _ZERO, "precision", ("bf16", "half", *_FP8)),
    ("strategy", _FSDP, "precision", ("half",)),
    ("precision", ("half",), "optimizer", ("backward",)),
    ("precision", ("half",), "compile", ("graphs",)),
    ("precision", ("half",), "loss", ("chunked",)),
    ("precision", ("fp32",), "attention", ("cudnn", "flash")),
    ("strategy", _ZERO, "optimizer", ("muon", "8bit", "16bit")),
    ("strategy", _ZERO, "loss", ("ignored",)),
    ("strategy", _ZERO, "extra", ("average",)),
    ("strategy", (*_ZERO, *_DETERMINISTIC, "ddp"), "optimizer", ("backward",)),
    ("strategy", _DETERMINISTIC, "precision", ("bf16", *_FP8)),
    ("strategy", ("fsdp-deterministic",), "optimizer", ("adamw",)),
    ("strategy", ("fsdp-offload",), "optimizer", ("muon", "8bit", "16bit", "backward")),
    ("precision", _FP8, "compile", ("none",)),
    ("optimizer", ("backward",), "compile", ("network", "graphs")),
    ("optimizer", ("backward",), "loss", ("ignored",)),
)

# What users start with, whatever else the pairs cover.
NAMED: dict[str, dict[str, str]] = {
    **{
        name: {"strategy": name}
        for name in FACTORS["strategy"]
        if name not in ("fsdp-deterministic", *_ALONE)
    },
    "fsdp-deterministic": {"strategy": "fsdp-deterministic", "optimizer": "unfused"},
    "graphs": {"compile": "graphs"},
    "zero3-selective": {"strategy": "zero3", "recompute": "selective"},
}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: says what differs from the plain values.
        choice: factor -> value.
        must_refuse: ``check`` must not let it pass.
        named: one of ``NAMED``.
    """

    name: str
    choice: dict[str, str] = field(hash=False)
    must_refuse: bool = False
    named: bool = False

    @property
    def values(self) -> Values:
        """What its YAML holds, by dotted keys."""
        found = dict(BASE)
        for factor, value in self.choice.items():
            found.update(FACTORS[factor][value])
        return found

    @property
    def launched(self) -> bool:
        """Whether torchrun starts it."""
        return self.choice["strategy"] != "single"


def cells() -> list[Cell]:
    """All of them: the named ones, those of all pairs, and those that must be refused."""
    refused = set(_refused_pairs())
    named = [Cell(name, _plain() | choice, named=True) for name, choice in NAMED.items()]
    met = set().union(*(_pairs(cell.choice) for cell in named))
    pairs = [Cell(_name(choice), choice) for choice in _covering(refused, met)]
    rejected = [
        Cell("no " + " ".join(value for _, value in sorted(pair)), _plain() | dict(pair), True)
        for pair in _refused_pairs()
    ]
    return [*named, *pairs, *rejected]


def _plain() -> dict[str, str]:
    return {factor: next(iter(values)) for factor, values in FACTORS.items()}


def _name(choice: dict[str, str]) -> str:
    plain = _plain()
    shown = [v for f, v in choice.items() if f in ("strategy", "then") or v != plain[f]]
    return " ".join(shown)


def _refused_pairs() -> Iterator[Pair]:
    for one, these, other, those in REFUSED:
        for first, second in itertools.product(these, those):
            yield frozenset(((one, first), (other, second)))


def _covering(refused: set[Pair], met: set[Pair], tries: int = 60) -> Iterator[dict[str, str]]:
    """Few choices in which all pairs meet that are not refused or met: the best of ``tries`` each.

    Each starts with a pair that is still to be met, and takes the other factors in a random order,
    for each the value that meets most further pairs. The generator is seeded: the cells stay the
    same until a factor changes.
    """
    draw = random.Random(0)
    wanted = (
        {
            frozenset(((one, a), (other, b)))
            for one, other in itertools.combinations(FACTORS, 2)
            for a, b in itertools.product(FACTORS[one], FACTORS[other])
            if a not in _ALONE
        }
        - refused
        - met
    )
    while wanted:
        start = min(wanted, key=sorted)
        found = [
            choice
            for _ in range(tries)
            if (choice := _complete(dict(start), wanted, refused, draw)) is not None
        ]
        if not found:
            raise AssertionError(f"{sorted(start)} meet in no cell; should they be in REFUSED?")
        best = max(found, key=lambda choice: len(wanted & _pairs(choice)))
        wanted -= _pairs(best)
        yield {factor: best[factor] for factor in FACTORS}


def _complete(
    choice: dict[str, str], wanted: set[Pair], refused: set[Pair], draw: random.Random
) -> dict[str, str] | None:
    """``choice`` with a value for every factor; None where one of them has none left."""
    missing = [factor for factor in FACTORS if factor not in choice]
    draw.shuffle(missing)
    for factor in missing:
        options = [
            (len(new & wanted), draw.random(), value)
            for value in FACTORS[factor]
            if value not in _ALONE
            and not (new := {frozenset((pair, (factor, value))) for pair in choice.items()})
            & refused
        ]
        if not options:
            return None
        choice[factor] = max(options)[2]
    return choice


def _pairs(choice: dict[str, str]) -> set[Pair]:
    return {frozenset(pair) for pair in itertools.combinations(choice.items(), 2)}
