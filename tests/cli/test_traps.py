"""The traps that LightningCLI leaves open are closed, and a file means what it says."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llm_train import verbs
from llm_train.cli import load_settings
from llm_train.runtime import terminal
from llm_train.runtime.yaml12 import dump, load
from llm_train.testing.command import refused, run
from llm_train.testing.configs import tiny, write
from llm_train.trainer.logger.records import read_metrics

ADAMW = "model__optimizer__init_args__"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("3E+4", 3e4),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("1_000.5", 1000.5),
        ("'3e-4'", "3e-4"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("2024-05-01", "2024-05-01"),
        ("0x10", 16),
        ("010", 10),
        ("0o10", 8),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("1e-05", 1e-5),
        ("null", None),
        ("", None),
    ],
)
def test_scalars(text: str, value: object) -> None:
    assert load(text) == value


def test_what_is_written_reads_the_same() -> None:
    words = ["010", "1:30", "yes", "no", "3e-4", "0o10", "null", "~", "", "2024-05-01", "1_000"]
    words += ["0x1F", "- a", "a: b", "#", "true", "a\nb", "é", " x ", "1.", "1e5", "x" * 200, "="]
    values = [*words, 1e-5, -3e-14, 1e20, 10, True, None, [], {}]
    assert load(dump({"all": values})) == {"all": values}
    # Floats are floats for readers of YAML 1.1 too.
    assert yaml.safe_load(dump([1e-5, 1e20])) == [1e-5, 1e20]


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("--trainer.benchmark=yes", "trainer.benchmark=yes"),
        ("--model.network.init_args.layers=1:30", "model.network.init_args.layers=1:30"),
        ("--model.network.init_args.layers=010", ""),
    ],
)
def test_an_option_is_read_like_a_file(option: str, shown: str, tmp_path: Path) -> None:
    file = str(write(tmp_path / "tiny.yaml", tiny(tmp_path / "run")))
    if shown:
        (line,) = refused("check", "-c", file, option)
        assert line.startswith(shown)
    else:
        assert load_settings(["-c", file, option]).task.network_config.layers == 10


def settings(tmp_path: Path, *arguments: str, **overrides: Any) -> Any:
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run", **overrides))
    return load_settings(["-c", str(file), *arguments])


@pytest.mark.parametrize("written", ["3e-4", "'3e-4'", "0.0003"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, written: str) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    file.write_text(file.read_text().replace("learning_rate: 0.01", f"learning_rate: {written}"))
    assert load_settings(["-c", str(file)]).task.optimizer_config.learning_rate == 3e-4


def test_words_that_yaml_1_1_takes_for_booleans(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    file.write_text(
        file.read_text().replace("learning_rate: 0.01", "{learning_rate: 1, fused: on}")
    )
    file.write_text(file.read_text().replace("init_args:\n      {", "init_args: {"))
    assert load_settings(["-c", str(file)]).task.optimizer_config.fused == "on"


def test_a_path_may_begin_with_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "tiny.yaml", tiny(Path("~/run")))
    source = "--data.source={class_path: TokenShards, init_args: {path: $HOME/tokens}}"
    found = load_settings(["-c", "~/tiny.yaml", source])
    assert (found.run_dir, found.data.source.folder) == (tmp_path / "run", tmp_path / "tokens")
    option = "--trainer.default_root_dir=${HOME}"
    assert load_settings(["-c=~/tiny.yaml", option]).run_dir == tmp_path
    (line,) = refused("check", "-c", "$NOWHERE/tiny.yaml")
    assert line == "$NOWHERE/tiny.yaml: there is no such variable; set it, or write it out"
    missing = run("fit", "-c", "~/tiny.yaml", "--resume=~/none").errors
    assert missing[0].startswith(f"{tmp_path}/none does not exist")


@pytest.mark.parametrize("spelling", [["-c", "{}"], ["-c={}"], ["-c{}"], ["--config={}"]])
def test_spellings_of_the_option(tmp_path: Path, spelling: list[str]) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    assert load_settings([part.format(file) for part in spelling]).seed == 7


# --- merging --------------------------------------------------------------------------------------


def test_later_files_win_and_options_win_over_files(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", tiny(tmp_path / "run"))
    overlay = write(
        tmp_path / "overlay.yaml",
        {"seed": 8, "model": {"network": {"init_args": {"layers": 3}}}, "batch": {"tokens": 256}},
    )
    found = load_settings(["-c", str(base), "-c", str(overlay), "--batch.tokens=512"])
    network = found.task.network_config
    assert (found.seed, network.layers, network.width) == (8, 3, 16)
    assert (found.batch.tokens, found.batch.sequence) == (512, 16)
    assert found.name == "base"
    assert load_settings(["--seed=9", "-c", str(base)]).seed == 9, "wherever the option stands"
    (line,) = refused("check", "-c", str(overlay), "-c", str(base))
    assert line.startswith("model.network has settings and no class yet")
    assert "name model.network.class_path before them, in the same or an earlier file" in line


def test_another_class_keeps_the_settings_it_knows_and_loses_the_others(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", tiny(tmp_path / "run", **{f"{ADAMW}fused": "off"}))
    overlay = write(
        tmp_path / "overlay.yaml", {"model": {"optimizer": {"class_path": "LowBitAdamW"}}}
    )
    found = load_settings(["-c", str(base), "-c", str(overlay)])
    optimizer = found.plain["model"]["optimizer"]
    assert optimizer["class_path"] == "llm_train.model.optimizer.LowBitAdamW"
    assert optimizer["init_args"]["learning_rate"] == 0.01
    assert "fused" not in optimizer["init_args"]
    (note,) = found.notes
    assert "model.optimizer=LowBitAdamW in the place of AdamW keeps learning_rate" in note
    assert "and drops fused; set model.optimizer.init_args.NAME" in note
    rate = "--model.optimizer.learning_rate=0.2"
    (note,) = load_settings(["-c", str(base), "--model.optimizer=MuonAdamW", rate]).notes
    assert "AdamW keeps fused; set" in note  # the rate is its own
    (note,) = load_settings(["-c", str(base), "--model.schedule=Constant"]).notes
    assert "model.schedule=Constant in the place of WarmupCosine keeps warmup" in note
    assert load_settings(["-c", str(base), rate]).notes == ()


def test_print_config_runs_again_as_it_is(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", tiny(tmp_path / "run"))
    arguments = ["-c", str(base), "--model.network.init_args.layers=3", "--trainer.strategy=ddp"]
    printed = run("fit", *arguments, "--print_config")
    assert (printed.code, printed.err) == (0, "")
    again = tmp_path / "printed.yaml"
    again.write_text(printed.out)
    first, second = load_settings(arguments), load_settings(["-c", str(again)])
    assert first.text == second.text
    assert first.plain == second.plain
    assert second.task.network_config == first.task.network_config
    assert second.task.network_config.layers == 3
    assert first.budget == second.budget
    saved = tmp_path / "saved.yaml"
    saved.write_text(first.text)  # a run writes this into its directory
    assert load_settings(["-c", str(saved)]).text == first.text
    assert run("fit", "-c", str(again), "--print_config").out == printed.out


# --- running twice --------------------------------------------------------------------------------


def test_no_live_objects_in_hyper_parameters(tmp_path: Path) -> None:
    assert not settings(tmp_path).task.hparams
    assert not settings(tmp_path).data.hparams


def test_a_second_run_in_a_folder_loses_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    config = tiny(directory, steps=2, model__schedule={"class_path": "Constant"})
    file = write(tmp_path / "tiny.yaml", config)
    assert run("fit", "-c", str(file)).code == 0
    assert len(list((directory / "records").glob("*.yaml"))) == 1
    checkpoint = directory / "checkpoints" / "step-00000002"
    for name in ("rank-00000.pt", "callbacks.pt"):
        torch.load(checkpoint / name, weights_only=True)
    plain = yaml.safe_load((checkpoint / "config.yaml").read_text())
    assert plain["model"]["network"]["class_path"] == "llm_train.model.network.Transformer"
    first = (directory / "metrics.jsonl").read_text()

    again = run("fit", "-c", str(file))
    assert again.code == 0
    assert len(list((directory / "records").glob("*.yaml"))) == 2
    (earlier,) = (directory / "earlier").iterdir()
    assert f"moved the run that was in {directory} to {earlier}" in again.out
    assert (earlier / "metrics.jsonl").read_text() == first
    assert (earlier / "checkpoints" / "step-00000002" / "manifest.json").is_file()
    assert (checkpoint / "manifest.json").is_file()


def test_resuming_applies_and_shows_changed_values(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    config = tiny(directory, steps=2, model__schedule={"class_path": "Constant"})
    file = write(tmp_path / "tiny.yaml", config)
    assert run("fit", "-c", str(file)).code == 0
    longer = ["--budget=4 steps", f"--{ADAMW.replace('__', '.')}learning_rate=0.02"]
    resumed = run("fit", "-c", str(file), "--resume", "auto", *longer)
    assert resumed.code == 0
    table = [line.split("  ") for line in resumed.out.splitlines() if " -> " in line]
    changes = {row[1].strip(): row[-1].strip() for row in table}
    assert changes == {
        "budget": "2 steps -> 4 steps",
        "model.optimizer.init_args.learning_rate": "0.01 -> 0.02",
        "learning rate of step 2": "0.01 -> 0.02",
    }
    assert "goes up" not in resumed.out  # which is what was asked for
    assert "done: 4 steps" in resumed.out
    rates = [
        r["optimizer/lr"] for r in read_metrics(directory / "metrics.jsonl") if "train/loss" in r
    ]
    assert rates == [0.01, 0.01, 0.02, 0.02]
    records = sorted((directory / "records").glob("*.yaml"))
    assert yaml.safe_load(records[-1].read_text())["budget"] == "4 steps"
    assert yaml.safe_load((directory / "config.yaml").read_text())["budget"] == "4 steps"


def test_resuming_a_complete_run_repeats_its_result(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=2, model__schedule={"class_path": "Constant"})
    file = write(tmp_path / "tiny.yaml", config)
    first = run("fit", "-c", str(file))
    again = run("fit", "-c", str(file), "--resume", "auto")
    assert again.code == 0
    assert again.out.split("\ndone: ")[1] == first.out.split("\ndone: ")[1]
    assert "nothing was trained" in again.out
    at_end = "--checkpoint.every=0 steps"
    shorter = run("fit", "-c", str(file), "--resume", "auto", "--budget=1 steps", at_end)
    assert re.search("nothing was trained: .* of step 2, .* at step 1; .*--budget", shorter.out)


def test_a_signal_after_the_end_leaves_the_status_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: dict[str, object] = {}
    say = terminal.say

    def noted(text: str) -> None:
        handlers[text.strip().split()[0]] = signal.getsignal(signal.SIGTERM)
        say(text)

    monkeypatch.setattr(terminal, "say", noted)
    before = signal.getsignal(signal.SIGTERM)
    assert run("fit", "-c", str(write(tmp_path / "c.yaml", tiny(tmp_path / "run")))).code == 0
    assert handlers["done:"] == handlers["wrote"] == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == before


# --- help -----------------------------------------------------------------------------------------


def test_help_lists_what_has_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    outcome = run("fit", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert len(lines) < 190
    assert max(map(len, lines)) <= 100
    assert "  --batch.tokens=INT              target tokens per optimizer step" in outcome.out
    assert "the architecture: Transformer (required)" in outcome.out
    assert "--resume auto|PATH" in outcome.out
    assert "max_epochs" not in outcome.out


def test_help_of_a_class() -> None:
    outcome = run("check", "--model.schedule.help=WarmupCosine")
    assert outcome.code == 0
    assert "as a fraction of the peak" in " ".join(outcome.out.split())


def test_overview_and_version() -> None:
    from llm_train import __version__

    assert run("--version").out == f"llm-train {__version__}\n"
    overview = run()
    assert overview.code == 0
    assert overview.out == run("--help").out
    assert "  fit       Trains, validates and saves.\n" in overview.out


def test_a_new_verb_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greet.py").write_text(
        '''"""Greets whoever calls."""

from llm_train.verbs.base import Verb


class Greet(Verb):
    reads = "files"

    def add_flags(self, parser):
        parser.add_argument("--name", default="you")

    def run(self, flags, load):
        print("hello", flags.name)
        return 3
'''
    )
    monkeypatch.setattr(verbs, "__path__", [*verbs.__path__, str(tmp_path)])
    assert "  greet     Greets whoever calls.\n" in run("--help").out
    assert run("greet", "--name=all") == (3, "hello all\n", "")
    assert refused("gret") == ["'gret' is not a verb; did you mean greet?"]
    assert refused("greet", "--nam=x")[0].endswith("did you mean --name?")
