"""Every command in the documentation's ``sh`` blocks works.

Most of this is tested cheaply: verbs and flags must parse, files and targets must exist. The
README's sequence of verbs runs on a tiny corpus, followed by its torchrun command with two
processes.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from llm_train.testing.command import Outcome
from llm_train.testing.fork_server import ForkServer
from llm_train.units import Batch, Duration, Ramp, Scaling, SequenceRamp

ROOT = Path(__file__).parents[2]
# launching.md is about other people's programs, which test_scripts.py replaces by stand-ins.
DOCS = [page for page in (ROOT / "docs").glob("*.md") if page.name != "launching.md"]
DOCS += [ROOT / "docs/data" / name for name in ("audit.md", "tokenizers.md")]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS])

# With these options the quickstart takes seconds.
TINY = [
    "--model.network.init_args.layers=1",
    "--model.network.init_args.width=16",
    "--model.network.init_args.heads=2",
    "--budget=2 steps",
    "--validate_every=0 steps",
    "--checkpoint.every=0 steps",
    "--batch.tokens=1024",
    "--batch.per_device=1",
    "--model.schedule.init_args.warmup=1 steps",
    "--trainer.accelerator=cpu",
]
CORPUS = [
    "--data.recipe.init_args.corpus.class_path=TextFiles",
    "--data.recipe.init_args.corpus.init_args.paths=[text]",
    "--data.recipe.init_args.split.class_path=TailSplit",
    "--data.recipe.init_args.tokenizer.init_args.vocab_size=300",
]


def commands(page: Path) -> list[list[str]]:
    """Returns the commands of a page's ``sh`` blocks without their environment assignments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    plain = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in lines]
    return [words for line in plain if (words := shlex.split(line, comments=True))]


ALL = [words for page in PAGES for words in commands(page)]


def verb_and_options(words: list[str]) -> list[str]:
    """Returns the words after the program (``llm-train``, or ``torchrun ... -m llm_train``)."""
    return words[1:] if words[0] == "llm-train" else words[words.index("llm_train") + 1 :]


def run_all(fork_server: ForkServer, lines: list[list[str]], cwd: Path) -> list[Outcome]:
    return [fork_server.command(*line, folder=cwd, cwd=cwd) for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like a fresh checkout to the commands."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "docs/examples", folder / "docs/examples")
    (folder / "text").mkdir()
    for number, page in enumerate(PAGES):
        (folder / "text" / f"{number}.txt").write_text(page.read_text("utf-8"), "utf-8")
    (folder / "own.yaml").write_text(first_yaml(ROOT / "docs/your-own-corpus.md"), "utf-8")
    (folder / "my.yaml").write_text((ROOT / "configs/quickstart.yaml").read_text("utf-8"), "utf-8")
    return folder


def test_only_known_programs() -> None:
    known = {"export", "make", "pip", "llm-train", "torchrun", "wandb"}
    assert {words[0] for words in ALL} <= known


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {words[1] for words in ALL if words[0] == "make"} <= targets


def test_extras_exist() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", section("Installation"), re.MULTILINE))
    assert {name for row in named for name in row if name} == set(project["optional-dependencies"])


LINES = [verb_and_options(words) for words in ALL if words[0] in ("llm-train", "torchrun")]
# A run, a folder, or a sweep's own file.
WITHOUT_SETTINGS = (
    *("advise", "average", "chat", "data", "diff", "eval", "export", "generate", "import"),
    *("report", "serve", "sweep"),
)
TELLING = ("presets", "schema")  # about the package
PARSED = [line for line in LINES if line[0] not in (*WITHOUT_SETTINGS, *TELLING)]
OTHERS = [line for line in LINES if line[0] in WITHOUT_SETTINGS]


class Results(NamedTuple):
    """What each line left behind."""

    help: Outcome
    parsed: list[Outcome]
    others: list[Outcome]
    annotated: Outcome
    smallest: Outcome
    forbidden: Outcome


@pytest.fixture(scope="module")
def results(fork_server: ForkServer, place: Path) -> Results:
    (place / "annotated.yaml").write_text(first_yaml(ROOT / "README.md"), "utf-8")
    (place / "smallest.yaml").write_text(first_yaml(ROOT / "docs/configuration.md"), "utf-8")
    lines = [
        ["--help"],
        ["fit", "-c", "annotated.yaml", "--print_config"],
        ["check", "-c", "smallest.yaml", "--trainer.accelerator=cpu"],
        ["check", "-c", str(ROOT / "docs/examples/all.yaml")],
        *([*line, "--print_config"] for line in PARSED),
        *OTHERS,
    ]
    usage, annotated, smallest, forbidden, *rest = run_all(fork_server, lines, place)
    parsed, others = rest[: len(PARSED)], rest[len(PARSED) :]
    return Results(usage, parsed, others, annotated, smallest, forbidden)


def test_verbs_are_the_command_lines(results: Results) -> None:
    code, out, _ = results.help
    assert code == 0
    verbs = set(re.findall(r"^  (\w+)  +\w", out, re.MULTILINE))
    assert set(re.findall(r"^\| `(\w+)` \|", section("Verbs"), re.MULTILINE)) == verbs


def test_commands_parse(results: Results) -> None:
    assert PARSED
    for line, (code, out, err) in zip(PARSED, results.parsed, strict=True):
        assert code == 0, f"{line}: {err}"
        assert yaml.safe_load(out)["model"]["network"]
    assert OTHERS
    for line, (code, _, err) in zip(OTHERS, results.others, strict=True):
        assert code == 2
        missing = (
            "does not exist",
            "no metrics",
            "no prepared tokens",
            "no such file",
            "no folder",
        )
        assert any(words in err for words in missing), f"{line}: {err}"


def test_annotated_configuration(results: Results) -> None:
    code, out, err = results.annotated
    assert code == 0, err
    plain = yaml.safe_load(out)
    scaling = Scaling(**plain["batch"]["scaling"])
    batch = Batch(
        **{**plain["batch"], "scaling": scaling, "ramp": Ramp(), "sequence_ramp": SequenceRamp()}
    )
    assert scaling.factor(batch.tokens) == 2.0
    assert batch.accumulation(1) == 8
    assert batch.accumulation(2) == 4
    assert Duration.parse(plain["budget"]).steps(batch.tokens) > 500


def test_smallest_configuration_is_sound(results: Results) -> None:
    code, out, err = results.smallest
    assert code == 0, err
    assert "no problems found" in out


def test_examples_need_to_be_allowed(results: Results) -> None:
    code, _, err = results.forbidden
    assert code == 2
    assert "Traceback" not in err
    assert "--allow-import" in err


def test_every_preset_is_listed() -> None:
    listed = set(re.findall(r"\]\((configs/[\w./-]+\.yaml)\)", section("Presets")))
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    there -= {name for name in there if name.startswith("configs/sweeps/")}  # what sweeps vary
    assert "(configs/sweeps/base.yaml)" in section("Presets")
    assert there - listed == set()  # test_links finds what is listed and does not exist


def test_every_strategy_word_is_listed() -> None:
    from llm_train.trainer.strategy import known_words

    listed = re.findall(r"^\| `(\w+)` \|", section("Strategies"), re.MULTILINE)
    assert {"auto", *listed} == set(known_words())


@pytest.mark.distributed
def test_readme_sequence_runs(fork_server: ForkServer, place: Path) -> None:
    """Runs the README's verbs in their order, then its torchrun command, on a tiny corpus."""
    words = [w[1:] for w in commands(ROOT / "README.md") if w[0] == "llm-train"]
    sequence, after = words[:4], words[4:6]
    assert [w[0] for w in words[:6]] == [
        "prepare",
        "check",
        "fit",
        "validate",
        "generate",
        "report",
    ]
    lines = [*([*line, *TINY, *CORPUS] for line in sequence), *after]
    results = run_all(fork_server, lines, place)
    for line, (code, _, err) in zip([*sequence, *after], results, strict=True):
        assert code == 0, f"{line}: {err}"
    assert "bits per byte" in results[3][1]
    assert (place / "runs/quickstart/report.html").is_file()

    torchrun, resumed = [w for w in commands(ROOT / "README.md") if w[0] == "torchrun"]
    assert torchrun[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "llm_train"]
    arguments, log = [*verb_and_options(torchrun), *TINY, *CORPUS], place / "log.txt"
    assert fork_server.run(*arguments, ranks=2, log=log, cwd=place) == [0, 0], log.read_text()
    assert "done: 2 steps" in log.read_text()
    assert resumed[:5] == torchrun[:5]


@pytest.mark.distributed
def test_scripts_run_as_written(fork_server: ForkServer, place: Path) -> None:
    scripts = re.findall(r"^```python\n(.*?)^```", readme(), re.DOTALL | re.MULTILINE)
    assert [len([line for line in each.splitlines() if line]) for each in scripts] == [4, 5]
    (place / "scripts.py").write_text("\n".join(scripts), "utf-8")
    done = fork_server.command(script="scripts.py", folder=place, cwd=place)
    assert done.code == 0, done.err
    *_, result, predicted = done.out.splitlines()
    assert re.fullmatch(r"10 \d\.\d+", result)
    assert re.fullmatch(r"tensor\(\[\[\d+, +\d+, +\d+\]\]\)", predicted)


def first_yaml(page: Path) -> str:
    return page.read_text("utf-8").split("```yaml\n")[1].split("```")[0]


def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8")


def section(title: str) -> str:
    """Returns the text under a heading of the second level."""
    return re.split(rf"^## {title}$", readme(), flags=re.MULTILINE)[1].split("\n## ")[0]
