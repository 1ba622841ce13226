"""The command line runs as a process, under torchrun and without its optional packages."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.command import run
from llm_train.testing.configs import part, tiny, write
from llm_train.testing.ranks import environment, llm_train

BLOCKER = """\
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def installed(name, path=None, target=None):
    return None if name.split(".")[0] in {names!r} else find_spec(name, path, target)

PathFinder.find_spec = staticmethod(installed)

from importlib.metadata import Distribution, PackageNotFoundError

from_name = Distribution.from_name

def distribution(name):
    if name in {names!r}:
        raise PackageNotFoundError(name)
    return from_name(name)

Distribution.from_name = staticmethod(distribution)
"""


def python(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.distributed
def test_two_ranks_print_one_line(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run")
    network = config["model"]["network"]["init_args"]
    network["layerz"] = network.pop("layers")
    file = write(tmp_path / "faulty.yaml", config)
    done = llm_train("fit", "-c", str(file), ranks=2, cwd=tmp_path, check=False)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if "llm-train" in line]
    assert ours == [
        "llm-train: error: model.network.init_args.layerz is not a setting of Transformer; did you "
        "mean layers?"
    ]
    assert "usage:" not in done.stderr
    assert "exitcode  : 2 (pid:" in done.stderr
    assert "jsonargparse" not in done.stderr  # the only traceback is the launcher's own
    assert done.stdout == ""


# None of these is needed before something is compiled, sharded, simulated, drawn or logged there.
HEAVY = {
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "matplotlib", "altair"),
    *("llm_train.plan", "llm_train.parity", "llm_train.report"),
    *("llm_train.trainer.callbacks.profile", "llm_train.testing"),
    *("deepspeed", "wandb", "datasets", "torchao", "tensorboard", "pandas"),
}
LOADED = """
import sys
from llm_train.cli import main
heavy = set(sys.argv[1].split(","))
try:
    main(sys.argv[2:])
except SystemExit as exit_:
    print("RESULT", exit_.code, sorted(heavy & set(sys.modules)))
"""


def loaded(heavy: set[str], *arguments: str, cwd: Path) -> str:
    """Exit status of a command in a process of its own, and what of ``heavy`` it imported."""
    done = python(LOADED, ",".join(heavy), *arguments, cwd=cwd)
    return done.stdout.splitlines()[-1].removeprefix("RESULT ")


def test_check_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    assert loaded(HEAVY, "check", "-c", str(file), cwd=tmp_path) == "0 []"


def test_fit_imports_no_laboratory(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=2, model__schedule={"class_path": "Constant"})
    file = write(tmp_path / "tiny.yaml", config)
    # Torch loads its compiler to leave it out of an optimizer's step, and all of this with it.
    heavy = {name for name in HEAVY if not name.startswith("torch.")}
    assert loaded(heavy, "fit", "-c", str(file), cwd=tmp_path) == "0 []"


@pytest.fixture(scope="module")
def kept_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a first process keeps for later ones, where no other test writes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        python(LOADED, "torch", "schema", cwd=folder)
        yield folder


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 0),
        (["--version"], 0),
        (["chek"], 2),  # codespell:ignore chek
        (["fit", "--resme=auto"], 2),
        (["check", "--see=3"], 2),
        (["plan", "--gpus=3"], 2),
        (["parity", "--ranks=two"], 2),
        (["generate", "x", "--promt=a"], 2),
        (["report", "--help"], 0),
        (["fit", "--help"], 0),
        (["schema"], 0),
        (["presets", "quickstart"], 0),
    ],
)
def test_what_costs_no_torch(
    arguments: list[str], code: int, tmp_path: Path, kept_schema: Path
) -> None:
    assert loaded({"torch", "numpy", "lightning"}, *arguments, cwd=tmp_path) == f"{code} []"


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["check", "-c"]])
def test_output_that_nobody_reads(arguments: list[str], tmp_path: Path) -> None:
    """What ``| head`` does, at the first line, at the flush and at an exit."""
    if arguments[-1] == "-c":
        arguments = [*arguments, str(write(tmp_path / "tiny.yaml", tiny(tmp_path / "run")))]
    with subprocess.Popen(
        [sys.executable, "-m", "llm_train", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_checks_and_trains_without_the_optional_packages(tmp_path: Path) -> None:
    """One line says which package a configuration would need."""
    names = {"wandb", "deepspeed", "datasets", "tensorboard", "tensorboardX"}
    config = tiny(tmp_path / "run", steps=2, model__schedule={"class_path": "Constant"})
    plain = write(tmp_path / "plain.yaml", config)
    loggers = {
        "wandb": {"class_path": "llm_train.trainer.logger.WandB"},
        "tensorboard": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "x"}},
    }
    for name, logger in loggers.items():
        write(tmp_path / f"{name}.yaml", {"trainer": {"logger": logger}})
    corpus = {"class_path": "HuggingFace", "init_args": {"path": "nowhere"}}
    recipe = {"corpus": corpus, "tokenizer": {"class_path": "TrainBPE"}}
    recipe["split"] = {"class_path": "HashSplit", "init_args": {"fraction": 0.1}}
    overlay = {
        "source": {"class_path": "TokenShards", "init_args": {"path": str(tmp_path / "tokens")}},
        "recipe": {"class_path": "Tokenize", "init_args": recipe},
    }
    write(tmp_path / "datasets.yaml", {"data": overlay})
    code = (
        BLOCKER.format(names=names)
        + f"""
from llm_train.testing.command import run
base = ["-c", {str(plain)!r}]
for arguments in (
    ["check", *base],
    ["fit", *base],
    ["check", *base, "-c", "wandb.yaml"],
    ["check", *base, "-c", "tensorboard.yaml"],
    ["check", *base, "--trainer.strategy=zero1"],
    ["prepare", *base, "-c", "datasets.yaml"],
):
    outcome = run(*arguments)
    last = outcome.err if outcome.code else outcome.out
    print("RESULT", outcome.code, last.strip().splitlines()[-1])
"""
    )
    done = python(code, cwd=tmp_path)
    found = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if "RESULT" in line]
    error = "2 llm-train: error: "
    assert found == [
        "0 no problems found",
        f"0 wrote {tmp_path}/run/metrics.jsonl, config.yaml, derived.json and checkpoints/",
        f"{error}trainer.logger: the logger WandB needs the package wandb, which is not installed: "
        "pip install 'llm-train[wandb]', or set mode: disabled",
        f"{error}trainer.logger: TensorBoardLogger needs the package tensorboard, which is not "
        "installed; pip install 'llm-train[tensorboard]'",
        f"{error}trainer.strategy=ZeRO needs the package deepspeed, which is not installed: "
        "pip install 'llm-train[deepspeed]'",
        f"{error}this corpus needs the package datasets; run pip install 'llm-train[datasets]'",
    ], done.stderr


OWN = """
import os, sys
from dataclasses import dataclass
from llm_train.data import Filter

@dataclass(frozen=True, kw_only=True)
class Light(Filter):
    def __call__(self, document):
        with open("seen", "a") as seen:
            print(os.getpid(), *{"torch", "lightning"} & set(sys.modules), file=seen)
        return document
"""


def test_prepare_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / f"text/{number}.txt").write_text(f"Document {number}.\n" * 9)
    (tmp_path / "own.py").write_text(OWN)
    corpus = part("Filtered", corpus=part("TextFiles", paths=["text"]), filters=["own.Light"])
    split = part("HashSplit", fraction=0.1)
    recipe = part("Tokenize", corpus=corpus, tokenizer="Bytes", split=split, workers=2)
    config = tiny(tmp_path / "run", data__source=part("TokenShards", path="a"), data__recipe=recipe)
    first, second = write(tmp_path / "a.yaml", config), tmp_path / "b.yaml"
    second.write_text("{seed: 2, data: {source: {init_args: {path: b}}}}")
    words = ("prepare", "-c", str(first), "-c", str(second), "--allow-import=own", "--seed=3")
    assert loaded(set(), "schema", cwd=tmp_path).startswith("0 ")  # now it is kept
    for more in ([], [], ["--force", "--reread"], ["--data.source.path=c"]):
        assert loaded({"torch", "lightning"}, *words, *more, cwd=tmp_path) == "0 []", more
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert all(len(each) == 1 for each in seen)
    assert len({pid for (pid,) in seen}) > 2


@pytest.mark.parametrize(
    "changes",
    [
        {"buget": "2 steps"},  # codespell:ignore buget
        {"budget": 2000},
        {"budget": "1.5 steps"},
        {"model__network__init_args__layerz": 2},
        {"model__network__init_args__layers": "two"},
        {"model__network": "Transformer"},
        {"model__optimizer": {"class_path": "AdamW"}},
        {"model__optimizer": part("AdamW", learning_rate=0.1, betas=[0.9])},
        {"model__recompute": {}},
        {"trainer__devices": {"a": 1}},
        {"trainer__callbacks": ["EarlyStopping"]},
        {"data__sourze": 1},
    ],
    ids=str,
)
def test_prepare_refuses_what_is_wrong_elsewhere(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = str(write(tmp_path / "tiny.yaml", tiny(tmp_path / "run", **changes)))
    refused = run("prepare", "-c", file)
    assert (refused.code, refused.err) == (2, run("check", "-c", file).err)


def test_prepare_refuses_an_option_that_is_empty(tmp_path: Path) -> None:
    words = ("-c", str(write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))))
    refused = run("prepare", *words, "--trainer.gradient_clip_val=")
    assert "trainer.gradient_clip_val= is not a number or null" in refused.err
