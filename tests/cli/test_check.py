"""Each rule between settings prints its line, and the derived numbers follow from the settings."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from llm_train.check.trainer_rules import REPLACED
from llm_train.testing.command import essence, refused, run
from llm_train.testing.configs import part, tiny, write
from llm_train.trainer.strategy import known_words

ARGS = "model__network__init_args__"
MUON = {"class_path": "MuonAdamW", "init_args": {"learning_rate": 0.01}}
STRATEGIES = ", ".join(known_words())
TOKENS = tiny(Path())["data"]["source"]
LATE = {"after": "768 tokens", "weights": {"a": 2.0}}  # 6 steps of 128


def file_of(tmp_path: Path, **overrides: Any) -> str:
    return str(write(tmp_path / "tiny.yaml", tiny(tmp_path / "run", **overrides)))


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "batch does not divide": ({"batch__tokens": 200}, "batch.tokens=200; nearest: 192 or 224"),
    "sequence": (
        {"batch__sequence": 32},
        "batch.sequence=32; shorten it, or raise model.network.init_args.max_sequence",
    ),
    "validation": (
        {"validate_every": "7 steps"},
        "validate_every=7; shorten it, or use '0 steps' to validate at the end",
    ),
    "checkpoints": (
        {"checkpoint__every": "7 steps"},
        "checkpoint.every=7; shorten it, or use '0 steps' to save at the end",
    ),
    "a best that nothing measures": (
        {"checkpoint__best": "val_loss"},
        "checkpoint.best=val_loss; write val/loss or val/perplexity or val/bits_per_byte",
    ),
    "a best of one": (
        {"checkpoint__best": "val/loss"},
        "checkpoint.best=val/loss; write --validate_every='2 steps'",
    ),
    "kept checkpoints": (
        {"checkpoint__keep_every": "3 steps"},
        "checkpoint.keep_every=3; make it one",
    ),
    "kept of none": (
        {"checkpoint__every": "0 steps", "checkpoint__keep_every": "2 steps"},
        "checkpoint.keep_every=2; write --checkpoint.keep_every='0 steps'",
    ),
    "checkpoints kept after the end": (
        {"checkpoint__keep_every": "8 steps"},
        "checkpoint.keep_every=8; shorten it",
    ),
    "a mixture that changes after the end": (
        {"data__source": part("Mixture", sources={"a": TOKENS}, changes=[LATE])},
        "data.source.init_args.changes[0].after=768; shorten it, remove it, or raise budget",
    ),
    "warm-up": (
        {"model__schedule__init_args__warmup": "6 steps"},
        "model.schedule.warmup=6; warm up for at most 5 steps or train longer",
    ),
    "recomputation": (
        {"model__recompute": {"class_path": "EveryNth", "init_args": {"n": 3}}},
        "model.recompute.n=3; write a number from 1 to 2, or use NoRecompute",
    ),
    "vocabulary": (
        {f"{ARGS}vocab_size": 60},
        "data.source; set model.network.init_args.vocab_size to 61",
    ),
    "too little text": ({"data__source__init_args__length": 16}, "data.source; use more text"),
    "budget": ({"budget": "0 steps"}, "budget=0; give at least 1 steps"),
    "logging": (
        {"trainer__log_every_n_steps": 0},
        "trainer.log_every_n_steps=0 must be at least 1: logging cannot be switched off",
    ),
    "scaling without a reference": (
        {"batch__scaling": {"rule": "sqrt"}},
        "batch.scaling.rule=sqrt needs batch.scaling.reference_tokens, the tokens per step for "
        "which the learning rate was chosen",
    ),
    "reference without scaling": (
        {"batch__scaling": {"reference_tokens": 128}},
        "batch.scaling.reference_tokens=128; remove it or set batch.scaling.rule to linear or sqrt",
    ),
    "no devices": (
        {"trainer__devices": 0},
        "trainer.devices=0 must be a positive count, a list of indices, or auto",
    ),
    "CPUs by index": ({"trainer__devices": [0]}, "trainer.devices=[0]; write trainer.devices=1"),
    "no nodes": ({"trainer__num_nodes": -1}, "trainer.num_nodes=-1 must be at least 1"),
    "accelerator": (
        {"trainer__accelerator": "tpu"},
        "trainer.accelerator=tpu is not one of auto, cpu, gpu, cuda, mps; choose one",
    ),
    "strategy of Lightning by name": (
        {"trainer__strategy": "deepspeed_stage_2"},
        f"trainer.strategy=deepspeed_stage_2 is not one of {STRATEGIES}; for options write "
        "class_path and init_args of one of DDP, FSDP, LocalSGD, SingleDevice, ZeRO",
    ),
    "strategy of Lightning by class": (
        {"trainer__strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy"}},
        "trainer.strategy=DDPStrategy; use one of DDP, FSDP, LocalSGD, SingleDevice, ZeRO",
    ),
    "one device for many ranks": (
        {"trainer__strategy": "single", "trainer__devices": 2},
        "trainer.strategy=single; choose ddp, fsdp or zero1-3",
    ),
    "device against accelerator": (
        {"trainer__strategy": {"class_path": "SingleDevice", "init_args": {"device": "cuda:0"}}},
        "trainer.strategy.init_args.device=cuda:0; write trainer.strategy=single",
    ),
    "pure half precision": (
        {"trainer__precision": "16-true"},
        "trainer.precision=16-true; choose 32-true, bf16-mixed, bf16-true, 16-mixed",
    ),
    "bf16-true under ZeRO": (
        {"trainer__strategy": "zero3", "trainer__precision": "bf16-true"},
        "trainer.precision=bf16-true; write bf16-mixed",
    ),
    "clipping": (
        {"trainer__gradient_clip_val": -1.0},
        "trainer.gradient_clip_val=-1.0; remove it for no clipping",
    ),
    "profiler": (
        {"trainer__profiler": "fast"},
        "trainer.profiler=fast is not one of simple, advanced, pytorch",
    ),
    "loggers switched off": (
        {"trainer__logger": False},
        "trainer.logger=false; remove it, or name loggers by class_path",
    ),
    "one callback": (
        {"trainer__callbacks": {"class_path": "LearningRateMonitor"}},
        "trainer.callbacks; put a dash before class_path",
    ),
    "Lightning's checkpoints": (
        {"trainer__callbacks": [{"class_path": "ModelCheckpoint"}]},
        "trainer.callbacks[0]=ModelCheckpoint does not work here: write --checkpoint.every='100 "
        "steps' --validate_every='100 steps' --checkpoint.best=val/loss, which keeps the best as "
        "well",
    ),
    "finetuning": (
        {"trainer__callbacks": [part("BackboneFinetuning")]},
        "trainer.callbacks[0]=BackboneFinetuning; remove it, and hold parameters with "
        "model.optimizer=Grouped and rates of 0",
    ),
    "a monitor that nothing measures": (
        {"trainer__callbacks": [part("EarlyStopping", monitor="val_loss")]},
        "trainer.callbacks[0]: EarlyStopping.monitor=val_loss; write val/loss or val/perplexity or "
        "val/bits_per_byte",
    ),
    "a monitor that is measured when it is too late": (
        {"trainer__callbacks": [part("EarlyStopping", monitor="val/loss")]},
        "trainer.callbacks[0]=EarlyStopping; write --validate_every='100 steps', for instance",
    ),
    "the end of an epoch": (
        {"trainer__callbacks": [part("Timer", duration="00:01:00:00", interval="epoch")]},
        "trainer.callbacks[0].init_args.interval=epoch; remove it",
    ),
    "two timers": (
        {"trainer__callbacks": [part("Timer")], "trainer__max_time": "00:01:00:00"},
        "trainer.max_time=00:01:00:00; remove one of them",
    ),
    "two bars": (
        {"trainer__callbacks": [part("RichProgressBar")]},
        "trainer.callbacks[0]=RichProgressBar; remove it",
    ),
    "optimizer that refuses": (
        {
            "model__optimizer": {
                "class_path": "TorchOptimizer",
                "init_args": {
                    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": -1.0}}
                },
            }
        },
        "model.optimizer.optimizer; see the class's documentation (for Muon on matrices use "
        "MuonAdamW)",
    ),
}
# A value that is not the Trainer's default, where neither a number nor the other truth is one.
OTHERS = {
    "enable_checkpointing": True,
    "enable_model_summary": True,
    "gradient_clip_algorithm": "value",
    "model_registry": "x",
}
for _key, _way_out in REPLACED.items():
    _default = inspect.signature(Trainer).parameters[_key].default
    _value = OTHERS.get(_key, not _default if isinstance(_default, bool) else 2)
    _shown = str(_value).lower()
    RULES[_key] = (
        {f"trainer__{_key}": _value},
        f"trainer.{_key}={_shown} has no effect here: {_way_out}",
    )


@pytest.mark.parametrize("name", RULES)
def test_each_rule(name: str, tmp_path: Path) -> None:
    overrides, message = RULES[name]
    assert essence(refused("check", "-c", file_of(tmp_path, **overrides))) == essence([message])


def test_all_problems_at_once(tmp_path: Path) -> None:
    file = file_of(
        tmp_path,
        batch__tokens=200,
        trainer__max_steps=3,
        trainer__strategy="deepspeed_stage_2",
        trainer__callbacks=[{"class_path": c} for c in ("ModelCheckpoint", "LearningRateFinder")],
        **{f"{ARGS}vocab_size": 60},
    )
    callbacks = ["trainer.callbacks[0]", "trainer.callbacks[1]"]
    first = ["trainer.strategy", "batch.tokens", "trainer.max_steps"]
    keys = [key for key, _, _ in essence(refused("check", "-c", file))]
    assert keys == [*first, *callbacks, "data.source"]


ALLOWED: dict[str, dict[str, Any]] = {
    "FSDP on one rank": {"trainer__strategy": "fsdp"},
    "a strategy with options": {
        "trainer__strategy": {"class_path": "DDP", "init_args": {"bucket_cap_mb": 50}}
    },
    "bf16-true": {"trainer__precision": "bf16-true"},
    "short names of precisions": {"trainer__precision": "bf16"},
    "fusion that the meta device lacks": {"model__optimizer__init_args__fused": "on"},
    "callbacks of Lightning": {
        "trainer__callbacks": [
            {"class_path": "LearningRateMonitor"},
            {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"interval": "step"}},
        ]
    },
    "loggers of Lightning": {
        "trainer__logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}]
    },
    "the rest of the Trainer": {
        "trainer__profiler": "simple",
        "trainer__detect_anomaly": True,
        "trainer__benchmark": True,
        "trainer__deterministic": "warn",
        "trainer__max_time": "00:00:10:00",
        "trainer__enable_progress_bar": False,
        "trainer__plugins": [{"class_path": "TorchCheckpointIO"}],
    },
}


def test_muon_under_zero(tmp_path: Path) -> None:
    file = file_of(tmp_path, trainer__strategy="zero2", model__optimizer=MUON)
    assert refused("fit", "-c", file) == [
        "model.optimizer=MuonAdamW needs whole matrices, and ZeRO flattens them; "
        "set trainer.strategy to ddp or fsdp, or use AdamW"
    ]


@pytest.mark.parametrize("verb", ["check", "fit"])
@pytest.mark.parametrize(
    ("key", "twice"),
    [
        ("plugins", part("lightning.pytorch.plugins.Precision")),
        ("callbacks", part("EarlyStopping", monitor="val/loss")),
    ],
)
def test_what_only_lightning_knows_is_one_line_too(
    key: str, twice: dict[str, Any], verb: str, tmp_path: Path
) -> None:
    changed: dict[str, Any] = {f"trainer__{key}": [twice] * 2, "validate_every": "2 steps"}
    (line,) = refused(verb, "-c", file_of(tmp_path, **changed))
    assert line.startswith("trainer: Lightning refuses these settings: ")
    assert not (tmp_path / "run").exists()


def test_clipping_with_muon(tmp_path: Path) -> None:
    file = file_of(tmp_path, model__optimizer=MUON, trainer__gradient_clip_val=1)
    assert run("check", "-c", file).code == 0


def test_a_rule_that_was_derived_for_sgd_is_a_note_with_adam(tmp_path: Path) -> None:
    file = file_of(tmp_path, batch__scaling={"rule": "linear", "reference_tokens": 32})
    adam, sgd = run("check", "-c", file), run("check", "-c", file, "--model.optimizer=SGD")
    assert "note: batch.scaling.rule=linear was derived for SGD" in adam.out
    assert "set batch.scaling.rule=sqrt" in adam.out
    assert adam.out.endswith("\nno problems found\n")
    assert "was derived for SGD" not in sgd.out


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed(name: str, tmp_path: Path) -> None:
    outcome = run("check", "-c", file_of(tmp_path, **ALLOWED[name]))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("\nno problems found\n")


# --- what is missing ------------------------------------------------------------------------------


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package_: str | None = None) -> Any:
        return None if name.split(".")[0] == package else real(name, package_)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_zero_without_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "deepspeed")
    assert refused("check", "-c", file_of(tmp_path, trainer__strategy="zero1")) == [
        "trainer.strategy=ZeRO needs the package deepspeed, which is not installed: "
        "pip install 'llm-train[deepspeed]'"
    ]


PREPARED: dict[str, Any] = {
    "class_path": "Tokenize",
    "init_args": {
        "corpus": {"class_path": "TextFiles", "init_args": {"paths": ["{text}"]}},
        "tokenizer": {"class_path": "Characters"},
        "split": {"class_path": "TailSplit", "init_args": {"fraction": 0.2}},
    },
}


def test_data_that_are_not_prepared_are_a_note_for_check_only(tmp_path: Path) -> None:
    data = {"class_path": "TokenShards", "init_args": {"path": str(tmp_path / "tokens")}}
    file = file_of(tmp_path, data__source=data)
    outcome = run("check", "-c", file)
    assert (outcome.code, outcome.err) == (1, "")
    assert (
        f"note: data not here yet: copy them to {tmp_path}/tokens, or set data.recipe"
        in outcome.out
    )
    assert "no problems found, but fit needs what the note says first" in outcome.out
    made = run("check", "-c", file_of(tmp_path, data__source=data, data__recipe=PREPARED))
    assert "note: data not prepared yet: run llm-train prepare with the same options" in made.out
    assert refused("fit", "-c", file) == [
        f"data.source.path={tmp_path}/tokens: no prepared tokens in {tmp_path}/tokens; "
        "run `llm-train prepare -c CONFIG`"
    ]


def test_a_vocabulary_that_will_not_fit_is_known_before_the_data_are(tmp_path: Path) -> None:
    recipe = {**PREPARED, "init_args": {**PREPARED["init_args"]}}
    recipe["init_args"] |= {
        "corpus": {"class_path": "StandardLibrary"},
        "tokenizer": {"class_path": "TrainBPE", "init_args": {"vocab_size": 512}},
    }
    data = {"class_path": "TokenShards", "init_args": {"path": str(tmp_path / "tokens")}}
    assert refused("check", "-c", file_of(tmp_path, data__source=data, data__recipe=recipe)) == [
        "data.recipe.init_args.tokenizer has 512 token ids but model.network knows 61; "
        "set model.network.init_args.vocab_size to 512"
    ]


def test_damaged_data_and_another_recipe(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 20)
    recipe = {**PREPARED, "init_args": {**PREPARED["init_args"]}}
    recipe["init_args"]["corpus"] = {"class_path": "TextFiles", "init_args": {"paths": [str(text)]}}
    data = {"class_path": "TokenShards", "init_args": {"path": str(tmp_path / "tokens")}}
    file = file_of(tmp_path, data__source=data, data__recipe=recipe)
    assert run("prepare", "-c", file).code == 0
    table = run("check", "-c", file)
    assert table.code == 0
    assert "epochs" in table.out

    changed = refused("check", "-c", file, "--data.recipe.init_args.split.init_args.fraction=0.3")
    assert changed == [
        f"data.recipe differs from what {tmp_path}/tokens was prepared with: split.fraction: "
        "0.2 -> 0.3; choose another data.source path, or prepare again with --force"
    ]
    shard = next((tmp_path / "tokens").glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = refused("check", "-c", file)
    assert len(damaged) == 1
    assert shard.name in damaged[0]


def test_devices_are_asked_for_only_when_a_run_starts(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("has CUDA devices")
    file = file_of(tmp_path, trainer__accelerator="gpu", trainer__devices=2)
    assert run("check", "-c", file).code == 0
    assert refused("fit", "-c", file) == [
        "trainer.accelerator=gpu needs 2 CUDA devices and this machine has 0; set "
        "trainer.accelerator=cpu"
    ]


def test_torchrun_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 4}
    for name, value in {**variables, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, str(value))
    outcome = run("check", "-c", file_of(tmp_path))
    assert "128 = 4 ranks x 1 micro-batches x 2 samples x 16 positions" in outcome.out
    assert refused("check", "-c", file_of(tmp_path, trainer__devices=4)) == [
        "trainer.devices=4 but torchrun started 2 processes here; remove it, or give torchrun "
        "--nproc-per-node 4"
    ]
    assert refused("check", "-c", file_of(tmp_path, trainer__num_nodes=3)) == [
        "trainer.num_nodes=3 x 2 processes = 6, but torchrun started 4; remove it, or give "
        "torchrun --nnodes 3"
    ]
    assert run("check", "-c", file_of(tmp_path, trainer__num_nodes=2)).code == 0


# --- the numbers ----------------------------------------------------------------------------------


def table(text: str) -> dict[str, str]:
    rows = [line.strip().split("  ", 1) for line in text.splitlines() if "  " in line.strip()]
    return {name: value.strip() for name, value in rows}


def test_every_derived_number(tmp_path: Path) -> None:
    """By hand: 2 blocks of width 16, hidden 64, vocabulary 61, and 6 steps of 128 tokens each."""
    file = file_of(
        tmp_path,
        batch__scaling={"rule": "sqrt", "reference_tokens": 32},
        validate_every="256 tokens",
        trainer__precision="bf16",
    )
    found = table(run("check", "-c", file).out)
    matmul = 2 * (4 * 16 * 16 + 3 * 16 * 64) + 16 * 61  # attention, SwiGLU, head
    norms = 5 * 16
    assert found["parameters"] == f"{matmul + 16 * 61 + norms:,}"
    assert found["parameters_embedding"] == str(16 * 61)
    assert found["parameters_without_embedding"] == f"{matmul + norms:,}"
    assert found["parameters_matmul"] == f"{matmul:,}"
    causal = 6 * matmul + 6 * 2 * 16 * 16
    assert found["flops_per_token_causal"] == f"{causal:,}"
    assert found["flops_per_token_non_causal"] == f"{causal + 6 * 2 * 16 * 16:,}"
    assert found["flops_total_causal"] == f"{causal * 768:.3e}"
    assert found["tokens_per_step"] == (
        "128 = 1 ranks x 4 micro-batches x 2 samples x 16 positions"
    )
    assert found["total_tokens"] == "768"
    assert found["tokens_per_parameter"] == str(round(768 / (matmul + 16 * 61 + norms), 3))
    assert found["scaling"] == "sqrt: x sqrt(128 / 32 tokens) = 2"
    assert found["group_0"].startswith("peak 0.02 = 0.01 x 2, weight decay 0.1, 10 tensors, ")
    assert found["group_1"] == "peak 0.02 = 0.01 x 2, weight decay 0, 5 tensors, 80 parameters"
    assert found["warmup"] == "2 steps"
    assert found["factor_first_step"] == "0.5"
    assert found["factor_last_step"] == "0.1"
    assert found["validate_every"] == "2 steps (256 tokens)"
    assert found["precision"] == "bf16-mixed"
    assert found["strategy"] == "SingleDevice"
    assert found["train_tokens"] == "4,000"
    assert found["epochs"] == str(768 / 4000)


def test_a_cluster_is_checked_without_one(tmp_path: Path) -> None:
    flags = ["--trainer.accelerator=gpu", "--trainer.devices=8", "--trainer.num_nodes=4"]
    file = file_of(tmp_path, batch__tokens=4096, trainer__precision="bf16-mixed")
    outcome = run("check", "-c", file, *flags)
    found = table(outcome.out)
    assert outcome.code == 0
    assert found["tokens_per_step"] == (
        "4,096 = 32 ranks x 4 micro-batches x 2 samples x 16 positions"
    )
    assert (found["ranks"], found["strategy"]) == ("32", "DDP")
    hours = [value for name, value in found.items() if name.startswith("hours on 32 x ")]
    assert hours
    assert all("assuming an MFU of 40% against" in value for value in hours)
