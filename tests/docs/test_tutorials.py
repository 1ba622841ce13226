"""Every command of every tutorial, in its order: run at a tiny size, or checked for its ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from torch.distributed.run import parse_args

from llm_train.sweep import trial
from llm_train.testing.command import run
from llm_train.testing.fork_server import ForkServer
from tests.docs.test_readme import CORPUS, ROOT, TINY, commands

FOLDER = ROOT / "docs/tutorials"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "README.md")
# Seconds each; the other pages are behind the marker.
FAST = ("from-litgpt", "slurm", "your-optimizer")
# Pages for devices that the machine of a test has not: `fit` and `prepare` are checked there.
ELSEWHERE = ("one-gpu", "eight-gpus", "slurm", "from-torchtitan")
NOT_PREPARED = 1  # how `check` ends where the settings are sound and the tokens are not there yet
# The options of a real run stay as they are, its batch and its ranks among them.
THIN = ["--model.network.init_args.layers=1"]
HERE = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--model.compile=none"]
SMOKE = "configs/overlay-smoke.yaml"


def stem(page: Path) -> str:
    return page.stem


def files(page: Path) -> dict[str, str]:
    """The files that a page shows; each begins with its name."""
    found = re.findall(r"^```yaml\n(# (\S+)\n.*?)^```", page.read_text("utf-8"), re.S | re.M)
    return {name: text for text, name in found}


def texts(folder: Path) -> None:
    folder.mkdir()
    for number in range(120):
        story = f"Once upon a time there were {number} bears. " * 6
        (folder / f"{number}.txt").write_text(story, "utf-8")


def tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["Once upon a time there were bears."] * 9, trainer)
    made.save(str(path))


def hugging_face(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(folder / "tokenizer.json")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer) -> Path:
    """A checkout with what a reader of the pages has; a sweep's trials are forked."""
    for name in ("configs", "docs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    texts(tmp_path / "text")
    texts(tmp_path / "texts")
    tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "data/shakespeare_char").mkdir(parents=True)
    for name, count in (("train", 20_000), ("val", 500)):
        ids = np.random.default_rng(0).integers(0, 65, count).astype(np.uint16)
        ids.tofile(tmp_path / f"data/shakespeare_char/{name}.bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "docs/examples")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "docs/examples"))

    def process(line: Sequence[str], log: Path, variables: Mapping[str, str]) -> int:
        words = line[line.index("llm_train") + 1 :]
        (status,) = fork_server.run(
            *words, ranks=0, log=log, cwd=tmp_path, environment=dict(variables)
        )
        return status

    monkeypatch.setattr(trial, "_process", process)
    return tmp_path


def launched(words: list[str]) -> tuple[list[str], int, int]:
    """The command that a launcher's line starts, its processes on a node, and its nodes."""
    if words[0] == "torchrun":
        parsed = parse_args(words[1:])
        assert (parsed.module, parsed.training_script) == (True, "llm_train")
        nodes = int(parsed.nnodes.split(":")[0])
        return parsed.training_script_args, int(parsed.nproc_per_node), nodes
    script = next(n for n, word in enumerate(words) if word.startswith("scripts/"))
    assert (ROOT / words[script]).exists()
    asked = dict(zip(words[1:script:2], words[2:script:2], strict=True))
    each = int(asked.get("--ntasks-per-node", 8 if words[0] != "sbatch" else 1))
    return words[script + 1 :], each, int(asked.get("--nodes", 1))


def checked(words: list[str], each: int, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the settings of a command as the first of its ranks would."""
    options = [word for word in words[1:] if word not in ("--resume", "auto", "--profile")]
    with monkeypatch.context() as variables:
        for name, number in {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0}.items():
            variables.setenv(name, str(number))
        variables.setenv("WORLD_SIZE", str(each * nodes))
        variables.setenv("LOCAL_WORLD_SIZE", str(each))
        variables.setenv("TORCHELASTIC_RUN_ID", "tutorial")
        outcome = run("check", *options, *THIN, "--trainer.accelerator=gpu")
    assert outcome.code in (0, NOT_PREPARED), (words, outcome.err)
    assert "no problems found" in outcome.out
    assert re.search(rf"^  ranks +{each * nodes}$", outcome.out, re.M), outcome.out


def small(page: str, words: list[str]) -> list[str]:
    """The same command, with options that make it take a second."""
    verb, network = words[0], "--model.network.init_args."
    if verb in ("generate", "report", "diff", "data", "import", "export"):
        return words
    if page == "from-hugging-face":  # its network is small
        return [*words, *TINY[3:], "--batch.sequence=64"]
    if page == "from-nanogpt":
        return [*words, *TINY]
    if page == "from-litgpt" or SMOKE in words:
        sizes = {"vocab_size": 300, "kv_heads": 1, "mlp_width": 32, "max_sequence": 64}
        options = [f"{network}{key}={size}" for key, size in sizes.items()]
        words = [*words, *options, "--batch.sequence=64", *HERE]
        return [*words, *TINY]
    return [*words, *TINY, *CORPUS]


def follow(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does what a page says, from top to bottom."""
    for name, text in files(page).items():
        (place / name).write_text(text, "utf-8")
    if page.stem == "from-hugging-face":
        hugging_face(place / "models/my-llama")
    lines = commands(page)
    assert lines
    for words in lines:
        if words[0] in ("export", "scancel"):
            continue
        if words[0] != "llm-train":
            checked(*launched(words), monkeypatch)
        elif words[1] in ("parity", "plan"):  # which take long, and have tests of their own
            outcome = run(*words[1:], "--print_config")
            assert outcome.code == 0, (words, outcome.err)
        elif page.stem in ELSEWHERE and SMOKE not in words:
            checked(words[1:], 64 if "llama-8b" in words[3] else 1, 1, monkeypatch)
        else:
            outcome = run(*small(page.stem, words[1:]))
            accepted = (0, NOT_PREPARED) if words[1] == "check" else (0,)
            assert outcome.code in accepted, (words, outcome.err)


@pytest.mark.distributed
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in FAST], ids=stem)
def test_every_command(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(page, place, monkeypatch)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in FAST], ids=stem)
def test_every_command_of_the_others(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(page, place, monkeypatch)


def test_every_page_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (FOLDER / "README.md").read_text("utf-8")))
    assert listed == {page.name for page in PAGES}
