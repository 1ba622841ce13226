"""A run on text, and tasks that need no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_train.runtime import yaml12
from llm_train.testing.command import run
from llm_train.testing.configs import part, tiny, write

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind at all\n"
DOCUMENTS: Mapping[str, list[dict[str, Any]]] = {
    "choice": [
        {"question": "the quick", "choices": ["brown fox", "a cat", "the sea"], "answer": 0},
        {"question": "jumps over the lazy", "choices": ["no dog", "dog", "no"], "answer": 1},
        {"question": "and the dog does not", "choices": ["mind", "dog fox", "all"], "answer": 0},
        {"question": "fox", "choices": ["over", "jumps over", "lazy dog"], "answer": 1},
        {"question": "", "choices": ["the quick", "all"], "answer": 0},
    ],
    "text": [{"text": TEXT.strip()}, {"text": "the dog"}, {"text": "a fox does not jump over"}],
    "writing": [{"question": "the quick", "answer": "brown"}],
}
TASKS: Mapping[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks with their documents."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        lines = "".join(json.dumps(each) + "\n" for each in DOCUMENTS[name])
        (folder / f"{name}.jsonl").write_text(lines)
        data = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
        body = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml12.dump({**body, **task}))
    return folder


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.yaml, its tokens, and the run that it describes."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT * 400)
    corpus = part("TextFiles", paths=[str(folder / "text.txt")])
    config = tiny(
        folder / "run",
        data__source=part("TokenShards", path=str(folder / "tokens")),
        data__recipe=part(
            "Tokenize",
            corpus=corpus,
            tokenizer=part("TrainBPE", vocab_size=300),
            split=part("TailSplit", fraction=0.1),
        ),
    )
    size = {"vocab_size": 300, "pad_vocab_to": 64, "dropout": 0.0, "kv_heads": 1}
    config["model"]["network"]["init_args"] |= size
    file = str(write(folder / "run.yaml", config))
    for verb in ("prepare", "fit"):
        outcome = run(verb, "-c", file)
        assert outcome.code == 0, outcome.err
    return folder
