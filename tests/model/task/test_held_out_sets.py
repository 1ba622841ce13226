"""Each held-out set has results of its own, and a run needs none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llm_train import build, load_settings, validate
from llm_train.check import notes
from llm_train.errors import ConfigError
from llm_train.testing.configs import part, tiny, write
from llm_train.verbs.validate import held_out

SOURCES = {
    name: part("RandomTokens", vocabulary=61, length=2000, held_out_length=length, seed=length)
    for name, length in (("web", 500), ("code", 300))
}


def settings(folder: Path, source: dict[str, Any], **overrides: Any) -> Any:
    config = tiny(folder / "run", steps=3, data__source=source, **overrides)
    return load_settings(write(folder / "c.yaml", config))


def test_every_set_is_scored_as_if_it_were_alone(tmp_path: Path) -> None:
    mixed = part("Mixture", sources=SOURCES)
    loaded = settings(tmp_path, mixed)
    found = build(loaded).fit().metrics
    assert found["val/loss"] == found["val/web/loss"]
    assert found["val/code/perplexity"] == pytest.approx(math.exp(found["val/code/loss"]))
    for name in SOURCES:
        alone = validate(settings(tmp_path, SOURCES[name])).metrics
        assert alone.keys() == {"val/loss", "val/perplexity"}
        assert alone["val/loss"] == pytest.approx(found[f"val/{name}/loss"], rel=1e-6)
    again = validate(settings(tmp_path, mixed))
    rows = held_out(loaded, again)
    assert rows["code loss (nats per token)"] == round(found["val/code/loss"], 4)
    few = validate(settings(tmp_path, mixed, data__validate_tokens="64 tokens")).metrics
    assert few["val/code/loss"] != found["val/code/loss"]
    assert few["val/code/loss"] == pytest.approx(found["val/code/loss"], rel=0.2)


def test_a_run_without_held_out_text_says_so_and_trains(tmp_path: Path) -> None:
    nothing = part("RandomTokens", vocabulary=61, length=2000, held_out_length=0)
    loaded = settings(tmp_path, nothing)
    assert [note for note in notes(loaded) if "validates nothing" in note]
    result = build(loaded).fit()
    assert (result.complete, result.metrics) == (True, {})
    assert not validate(settings(tmp_path, nothing)).metrics


def test_a_limit_is_in_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validate_tokens=5 steps must be in tokens"):
        settings(tmp_path, SOURCES["web"], data__validate_tokens="5 steps")
