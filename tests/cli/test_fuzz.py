"""Whatever is given to a verb or a part, nobody sees a traceback, and what is refused fails."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import callbacks

from llm_train.cli import schema
from llm_train.cli.whole import ROOTS
from llm_train.testing.command import Outcome, refused, run
from llm_train.testing.configs import part, tiny, write

WRONG = [-1, 0, 1 << 70, 1e39, float("nan"), "x", "", [], [1], {}, {"a": 1}, True, "/nope/nope"]
FAMILIES = {
    "model.network": "model__network",
    "model.loss": "model__loss",
    "model.optimizer": "model__optimizer",
    "model.schedule": "model__schedule",
    "model.recompute": "model__recompute",
    "data.source": "data__source",
    "data.recipe": "data__recipe",
    "trainer.strategy": "trainer__strategy",
    "trainer.callbacks": "trainer__callbacks",
    "trainer.logger": "trainer__logger",
}


def classes() -> list[tuple[str, type]]:
    hints = schema.flattened(ROOTS)
    found = [(key, name) for key in FAMILIES for name in schema.class_names(hints[key].hint)]
    kinds = [(FAMILIES[key], schema.subclass(hints[key].hint, name)) for key, name in found]
    return [(key, kind) for key, kind in kinds if kind is not None]


def require_one_line_each(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.err
    refusals = [line for line in outcome.err.splitlines() if "llm-train: error: " in line]
    assert (outcome.code == 0) == (not refusals), outcome
    assert outcome.code in (0, 1, 2), outcome


@pytest.mark.parametrize(
    ("key", "kind"), classes(), ids=lambda value: getattr(value, "__name__", value)
)
def test_parts(tmp_path: Path, key: str, kind: type) -> None:
    rng = random.Random(kind.__name__)
    names = list(schema.settings_of(kind))
    for size in (0, 2):
        wrong = {name: rng.choice(WRONG) for name in rng.sample(names, min(size, len(names)))}
        chosen: Any = part(kind.__name__, **wrong)
        if key in ("trainer__callbacks", "trainer__logger"):
            chosen = [chosen]
        config = write(tmp_path / "c.yaml", tiny(tmp_path / "run", **{key: chosen}))
        outcome = run("check", "-c", str(config))
        require_one_line_each(outcome)
        assert outcome.code != 1, outcome  # what a part is given is wrong input


CALLBACKS: dict[str, Any] = {
    "Timer": part("Timer", duration="00:00:00:10"),
    "EarlyStopping": part("EarlyStopping", monitor="nope"),
    "LambdaCallback": part("LambdaCallback", on_train_start="nope"),
    "LearningRateMonitor": part("LearningRateMonitor"),
    "ModelPruning": part("ModelPruning", pruning_fn="l1_unstructured"),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_failure_of_a_library_names_its_part(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    config = tiny(run_dir, steps=4, trainer__callbacks=[CALLBACKS[name]])
    arguments = ("fit", "-c", str(write(tmp_path / "c.yaml", config)))
    outcome = run(*arguments)
    require_one_line_each(outcome)
    if outcome.code == 1:
        last = outcome.err.splitlines()[-1]
        assert f"error: {name}: " in last
        assert f"the traceback is in {run_dir}/traceback.txt" in last
        assert "Traceback" in (run_dir / "traceback.txt").read_text()
        monkeypatch.setenv("LLM_TRAIN_TRACEBACK", "1")
        assert "Traceback" in run(*arguments).err


NEEDED: dict[str, dict[str, Any]] = {
    "EarlyStopping": {"monitor": "val/loss"},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ModelPruning": {"pruning_fn": "l1_unstructured", "use_global_unstructured": False},
    "OnExceptionCheckpoint": {"dirpath": "x"},
    "StochasticWeightAveraging": {"swa_lrs": 0.1},
}


@pytest.mark.parametrize("name", callbacks.__all__)
def test_a_callback_of_lightning_works_or_is_refused(tmp_path: Path, name: str) -> None:
    chosen = [part(f"lightning.pytorch.callbacks.{name}", **NEEDED.get(name, {}))]
    config = tiny(tmp_path / "run", steps=2, validate_every="1 steps", trainer__callbacks=chosen)
    file = str(write(tmp_path / "c.yaml", config))
    if run("check", "-c", file).code == 0:
        assert run("fit", "-c", file).code == 0


VERBS = {
    "fit": [
        "--resume=/nope",
        "--plan=/nope",
        "--trainer.default_root_dir=/proc/x",
        f"--seed={1 << 70}",
    ],
    "validate": ["--checkpoint=/nope", ""],
    "advise": ["/nope", "", "/proc"],
    "sweep": ["/nope", "", "/proc"],
    "generate": ["/nope", "", "--device=x"],
    "plan": ["--gpu=x", "--devices=-1", "--nodes=x"],
    "parity": ["--ranks=x", "--strategies=x"],
    "prepare": [""],
    "report": ["/nope", "", "/proc"],
    "check": ["--batch.tokens=nan", "-c/nope", "-c/"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs(tmp_path: Path, verb: str) -> None:
    config = write(tmp_path / "c.yaml", tiny(tmp_path / "run", steps=4))
    takes = [] if verb in ("advise", "generate", "report", "sweep") else ["-c", str(config)]
    for word in VERBS[verb]:
        outcome = run(verb, *takes, *filter(None, [word]))
        require_one_line_each(outcome)
        assert outcome.code == 2, outcome


OUTPUTS = [
    ("eval", "run", "--tasks=x", "--json={}"),
    ("plan", "--json={}"),
    ("parity", "--json={}"),
    ("report", "run", "--out={}"),
    ("sweep", "spec.yaml", "--out={}"),
    ("export", "run", "{}"),
    ("import", "folder", "{}"),
    ("average", "run", "{}", "--ema"),
]


@pytest.mark.parametrize("words", OUTPUTS, ids=lambda words: words[0])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    [line] = refused(*(word.format(tmp_path / "file" / "out") for word in words))
    assert "cannot be written: Not a directory; name another place" in line
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
