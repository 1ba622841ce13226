"""Wrong input gives one line on stderr that names the key, exit code 2, and builds nothing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from llm_train.model.network import Transformer
from llm_train.testing.command import essence, refused, run
from llm_train.testing.configs import tiny, write

NET = ("model", "network", "init_args")
ARGS = "model__network__init_args__"


def put(*path: str, **values: Any) -> Any:
    """Returns an edit of a configuration that sets ``values`` at ``path``."""

    def edit(config: dict[str, Any]) -> None:
        for name in path:
            config = config[name]
        config.update(values)

    return edit


def rename(*path: str, old: str, new: str = "") -> Any:
    """Returns an edit of a configuration that renames a key or removes it."""

    def edit(config: dict[str, Any]) -> None:
        for name in path:
            config = config[name]
        value = config.pop(old)
        if new:
            config[new] = value

    return edit


def sgd(**init_args: Any) -> dict[str, Any]:
    inner = {"class_path": "torch.optim.SGD", "init_args": init_args}
    return {"class_path": "TorchOptimizer", "init_args": {"optimizer": inner}}


FIFTEEN = {
    "nested typo": (
        rename(*NET, old="layers", new="layerz"),
        "model.network.init_args.layerz; did you mean layers?",
    ),
    "wrong type": (
        put(*NET, width="wide"),
        "model.network.init_args.width=wide; write 12, for instance",
    ),
    "missing field": (rename(*NET, old="vocab_size"), "model.network.init_args.vocab_size; add it"),
    "unknown class": (
        put("model", "network", class_path="Transfromer"),  # codespell:ignore
        "model.network.class_path=Transfromer; did you mean Transformer?",  # codespell:ignore
    ),
    "wrong argument of a torch class": (
        put("model", optimizer=sgd(lr=0.1, momentun=0.9)),
        "model.optimizer.init_args.optimizer.init_args.momentun; did you mean momentum?",
    ),
    "failed cross-field rule": (put("batch", tokens=100), "batch.tokens=100; nearest: 96 or 128"),
    "bad choice": (
        put(*NET, norm="batchnorm"),
        "model.network.init_args.norm=batchnorm is not one of layernorm, rmsnorm, none",
    ),
    "bad Trainer value": (
        put("trainer", precision="bf17"),
        "trainer.precision=bf17 is not one of 32-true, bf16-mixed, bf16-true, 16-mixed",
    ),
    "section typo": (
        rename(old="model", new="modle"),  # codespell:ignore modle
        "modle; did you mean model?",  # codespell:ignore modle
    ),
    "top-level typo": (rename(old="budget", new="buget"), "buget; did you mean budget?"),
    "float for int": (put(*NET, layers=2.5), "model.network.init_args.layers=2.5; write 2 or 3"),
    "bool for int": (
        put(*NET, layers=True),
        "model.network.init_args.layers=true; write 12, for instance",
    ),
    "duplicate key": (
        None,  # edited as text, because a mapping cannot hold a key twice
        "seed; remove one",
    ),
    "abbreviation": (put(), "--trainer.prec=32-true", "trainer.prec; did you mean precision?"),
    "forbidden import": (
        put("model", "network", class_path="os.system"),
        "model.network.class_path=os.system; if you trust that code, add --allow-import os",
    ),
}

MORE = {
    "whole float for int": (put(*NET, layers=2.0), "model.network.init_args.layers=2.0; write 2"),
    "failed rule inside a part": (
        put(*NET, width=15),
        "model.network.init_args.width=15; nearest: 12 or 16",
    ),
    "failed rule inside an optimizer": (
        put("model", "optimizer", "init_args", learning_rate=-1.0),
        "model.optimizer.init_args.learning_rate=-1.0; a usual value is 3e-4",
    ),
    "Trainer value of the wrong type": (
        put("trainer", gradient_clip_val="high"),
        "trainer.gradient_clip_val=high; correct it or remove it",
    ),
    "Trainer typo": (put("trainer", devics=1), "trainer.devics; did you mean devices?"),
    "typo in a group": (put("batch", token=3), "batch.token; did you mean tokens?"),
    "abbreviation of a top-level key": (put(), "--see=3", "--see; did you mean --seed?"),
    "abbreviation of a flag": (put(), "--allow=os", "--allow; did you mean --allow-import?"),
    "typo in an option": (
        put(),
        "--model.network.init_args.layerz=3",
        "model.network.init_args.layerz; did you mean layers?",
    ),
    "no value": (put(), "--seed", "--seed; write --seed=VALUE"),
    "file without -c": (
        put(),
        "other.yaml",
        "'other.yaml' is not an option; a configuration file is given as -c other.yaml",
    ),
    "duration without a unit": (
        put(budget=3),
        "budget=3; write '2000 steps' or '1.5B tokens', for instance",
    ),
    "class of another family": (
        put("model", "network", class_path="llm_train.model.optimizer.AdamW"),
        "model.network.class_path=llm_train.model.optimizer.AdamW; known: Transformer",
    ),
    "class that torch does not have": (
        put("model", optimizer={**sgd(lr=0.1), "init_args": {"optimizer": "torch.optim.SDG"}}),
        "model.optimizer.init_args.optimizer=torch.optim.SDG; did you mean SGD?",
    ),
    "settings beside class_path": (
        put("model", "optimizer", learning_rate=0.1),
        "model.optimizer.learning_rate; indent accordingly",
    ),
    "unknown setting beside class_path": (
        put("model", "network", layerz=3),
        "model.network.layerz; did you mean layers?",
    ),
    "one of many unknown settings": (
        put(*NET, foo=3),
        "model.network.init_args.foo; see --model.network.help=Transformer",
    ),
    "empty key": (
        put("batch", scaling={"": 1}),
        "batch.scaling.''; known: rule, reference_tokens",
    ),
    "list of one part": (
        put("model", optimizer=["AdamW"]),
        "model.optimizer; remove the dash or the brackets",
    ),
    "accelerator as a class": (
        put("trainer", accelerator={"class_path": "CPUAcceleratr"}),
        "trainer.accelerator={class_path: CPUAcceleratr} is not one of auto, cpu, gpu, cuda, mps",
    ),
    "number that is none": (
        put("model", optimizer=sgd(lr=math.nan)),
        "model.optimizer.init_args.optimizer.init_args.lr=nan; write 0.1 or 3e-4, for instance",
    ),
    "decay beyond zero": (
        put("model", "optimizer", "init_args", weight_decay=100.0),
        "model.optimizer; lower the decay below 100",
    ),
    "time without its form": (
        put("trainer", max_time="5 minutes"),
        "trainer.max_time=5; write 00:00:05:00 for five minutes",
    ),
    "no class": (put("model", network=None), "model.network; add it"),
    "item of a list": (
        put("trainer", callbacks=[{"class_path": "Timer", "init_args": {"durationn": 3}}]),
        "trainer.callbacks[0].init_args.durationn; did you mean duration?",
    ),
    "item of a list that refuses its settings": (
        put(
            "trainer",
            callbacks=[
                {"class_path": "LearningRateMonitor"},
                {"class_path": "Timer", "init_args": {"duration": "x"}},
            ],
        ),
        "trainer.callbacks[1]: Timer refuses its settings: `Timer(duration='x')` is not a valid "
        "duration. Expected a string in the format DD:HH:MM:SS.",
    ),
    "choice of a strategy": (
        put("trainer", strategy={"class_path": "ZeRO", "init_args": {"stage": 4}}),
        "trainer.strategy.init_args.stage=4 is not one of 1, 2, 3",
    ),
    "nested part": (
        put(
            "data",
            source={"class_path": "TokenShards", "init_args": {"path": "nowhere"}},
            recipe={
                "class_path": "Tokenize",
                "init_args": {
                    "corpus": {"class_path": "StandardLibrary"},
                    "tokenizer": {"class_path": "Characters"},
                    "split": {"class_path": "HashSplit", "init_args": {"fraction": 5.0}},
                },
            },
        ),
        "data.recipe.init_args.split.init_args.fraction=5.0 must be at least 0 and below 1: "
        "the part of the text held out",
    ),
    "time of day for int": (
        put(*NET, layers="1:30"),
        "model.network.init_args.layers=1:30; write 12, for instance",
    ),
    "no class, but settings": (
        put("model", optimizer={"init_args": {"learning_rate": 0.1}}),
        "model.optimizer; known: AdamW, Grouped, LAMB, LARS, Lion, LowBitAdamW, MuonAdamW, "
        "QuickProp, SGD, SGLD, ScheduleFreeAdamW, TorchOptimizer",
    ),
    "group that is no group": (
        put(batch="x"),
        "batch must be a group of settings, not a single value",
    ),
}

# An unknown key is one whatever stands under it: an empty mapping sets nothing, and says nothing.
EMPTY = {
    "modle": (put(modle={}), "did you mean model?"),  # codespell:ignore modle
    "model.netwrk": (put("model", netwrk={}), "did you mean network?"),
    "model.network.init_args.layerz": (put(*NET, layerz={}), "did you mean layers?"),
    "trainer.devics": (put("trainer", devics={}), "did you mean devices?"),
    "batch.token": (put("batch", token={}), "did you mean tokens?"),
    "batch.scaling.rul": (put("batch", scaling={"rul": {}}), "did you mean rule?"),
    "model.optimizer.init_args.optimizer.init_args.momentun": (
        put("model", optimizer=sgd(lr=0.1, momentun={})),
        "did you mean momentum?",
    ),
}
MORE |= {f"{key}: {{}}": (edit, f"{key}; {out}") for key, (edit, out) in EMPTY.items()}


@pytest.mark.parametrize("name", [*FIFTEEN, *MORE])
def test_one_line_and_nothing_built(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edit, *options, message = {**FIFTEEN, **MORE}[name]
    config = tiny(tmp_path / "run")
    if edit is not None:
        edit(config)
    file = write(tmp_path / "faulty.yaml", config)
    if edit is None:
        file.write_text(file.read_text() + "seed: 8\n")
    build = Transformer.build

    def without_memory(config: Transformer) -> nn.Module:  # rules may count, but not allocate
        network = build(config)
        assert all(parameter.is_meta for parameter in network.parameters()), "a model was built"
        return network

    monkeypatch.setattr(Transformer, "build", without_memory)
    lines = refused("fit", "-c", str(file), *options)
    assert essence(lines) == essence([message])
    assert not (tmp_path / "run").exists()


def test_all_unknown_keys_are_named_at_once(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", seeed=1, model__netwrk={}, trainer__devics=1)
    config["model"]["network"]["init_args"]["width"] = "wide"
    lines = refused("check", "-c", str(write(tmp_path / "faulty.yaml", config)))
    keys = [key for key, _, _ in essence(lines)]
    assert sorted(keys) == [
        "model.network.init_args.width",
        "model.netwrk",
        "seeed",
        "trainer.devics",
    ]


def test_there_are_fifteen() -> None:
    assert len(FIFTEEN) == 15


def test_several_parts_are_reported_at_once(tmp_path: Path) -> None:
    config = tiny(
        tmp_path / "run", **{f"{ARGS}width": 15}, model__optimizer__init_args__weight_decay=-1.0
    )
    config["checkpoint"] = {"keep_last": 0}
    file = write(tmp_path / "faulty.yaml", config)
    lines = refused("check", "-c", str(file))
    expected = [
        "checkpoint.keep_last=0 must be at least 1: the newest is what one resumes from",
        "model.network.init_args.width=15 is not a multiple of heads=2; nearest: 12 or 16",
        "model.optimizer.init_args.weight_decay=-1.0 is not a finite number; a usual value is 0.1",
    ]
    assert sorted(essence(lines)) == essence(expected)


EVIL = """\
from pathlib import Path
Path({marker!r}).write_text("ran")
from dataclasses import dataclass
from llm_train.model.network import Transformer

@dataclass(frozen=True, kw_only=True)
class Evil(Transformer):
    pass
"""


def test_a_foreign_module_does_not_run_until_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil_module.py").write_text(EVIL.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tiny(tmp_path / "run", model__network__class_path="evil_module.Evil")
    file = write(tmp_path / "evil.yaml", config)
    message = (
        "model.network.class_path=evil_module.Evil may not be imported: only llm_train, torch and "
        "lightning may; if you trust that code, add --allow-import evil_module"
    )
    assert refused("check", "-c", str(file)) == [message]
    assert not marker.exists()

    outcome = run("check", "-c", str(file), "--allow-import", "evil_module")
    assert outcome.code == 0
    assert marker.exists()
    assert "Evil" in outcome.out

    assert refused("check", "-c", str(file)) == [message], "allowed for one command only"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "-c; write settings as in 'budget: 2000 steps'"),
        ("- 1\n", "-c; write settings as in 'budget: 2000 steps'"),
        (
            "a: [1\n",
            "-c {file} is not valid YAML: line 2, column 1: expected ',' or ']', but got "
            "'<stream end>'",
        ),
        (
            "model:\n  network:\n    init_args: {layers: 1, width: 2, layers: 3}\n",
            "model.network.init_args.layers; remove one",
        ),
        (
            "trainer:\n  callbacks:\n  - class_path: A\n    class_path: B\n",
            "trainer.callbacks[0].class_path; remove one",
        ),
    ],
)
def test_documents(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "document.yaml"
    file.write_text(text)
    assert essence(refused("check", "-c", str(file))) == essence([message.format(file=file)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "'chek' is not a verb; did you mean check?"),  # codespell:ignore chek
        (["fit"], "no; give one with -c FILE.yaml, or -c preset:quickstart for a first run"),
        (["fit", "-c", "nowhere.yaml"], "-c; llm-train presets lists some"),
        (["fit", "--resume"], "llm-train; see llm-train fit --help"),
        (["generate"], "llm-train; see llm-train generate --help"),
        (["report"], "llm-train; see llm-train report --help"),
        (["generate", "x", "--promt=a"], "--promt; did you mean --prompt?"),
        (["generate", "x", "--tokens=many"], "llm-train; see llm-train generate --help"),
        (
            ["check", "--allow-import=a-b", "-c", "{file}"],
            "--allow-import; give the name of a module",
        ),
    ],
)
def test_verbs(arguments: list[str], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    verb, *rest = arguments
    lines = refused(verb, *(a.format(file=file) for a in rest))
    assert essence(lines) == essence([message])


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x", "--tokens=0"],
        ["chat", "x", "--tokens=-1"],
        ["serve", "x", "--port=0", "--batch=0"],
        ["eval", "x", "--tasks=y", "--batch=0"],
        ["data", "show", "x", "--step=1", "--characters=-1"],
        ["data", "show", "x", "--step=1", "--samples=-1"],
        ["data", "tokenizers", "x", "--megabytes=inf"],
        ["average", ".", "x", "--last=1"],
        ["plan", "-c", "{file}", "--devices=1000000000"],
    ],
)
def test_a_count_that_counts_nothing_is_named(arguments: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    (line,) = refused(*(word.format(file=file) for word in arguments))
    assert (arguments[-1] if arguments[0] != "plan" else "1000000000 ranks") in line
    assert re.search("at least|nearest", line)


@pytest.mark.parametrize(
    "text", ["device:", "validate_every:", "model: {loss: }", "model: {network: {init_args: }}"]
)
def test_a_key_without_a_value_is_named(text: str, tmp_path: Path) -> None:
    """All lines below it may be comments."""
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    (tmp_path / "more.yaml").write_text(text)
    lines = refused("check", "-c", str(file), "-c", str(tmp_path / "more.yaml"))
    assert len(lines) == 1
    assert "has no value; give it one, or remove the key" in lines[0]


def test_what_is_shown_must_be_there() -> None:
    (line,) = refused("data", "show", "NOPE", "--step=1")
    assert line.endswith("NOPE: no such file; name a YAML file, a run or preset:NAME")
