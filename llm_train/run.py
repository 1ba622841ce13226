"""What each verb does. A run is built in a few lines; everything else is asked of the parts."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from tqdm import tqdm

from llm_train import check as checks
from llm_train.callbacks import GracefulStop, Metrics, Progress
from llm_train.checkpoint.callback import Checkpoints
from llm_train.checkpoint.store import CheckpointStore, Found
from llm_train.data.prepare import prepare as prepare_tokens
from llm_train.data.sampler import Share
from llm_train.data.token_shards import TokenShards
from llm_train.derived import Derived
from llm_train.errors import CheckpointError, ConfigError
from llm_train.logger.jsonl import JSONLMetrics
from llm_train.peaks import dense_peak_flops
from llm_train.settings import Settings
from llm_train.strategy import DDP, FSDP, SingleDevice, ZeRO


def say(text: str = "") -> None:
    """Prints on rank 0."""
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


# --- verbs ----------------------------------------------------------------------------------------


def prepare(settings: Settings, *, force: bool) -> int:
    """Makes the tokens that ``data.source`` reads."""
    source = settings.data.source
    if not isinstance(source, TokenShards):
        raise ConfigError(
            f"data.source={type(source).__name__} reads nothing that could be prepared; "
            "only TokenShards does"
        )
    prepare_tokens(settings.data.recipe, source.path, force=force)
    say(_format("data", source.description()))
    return 0


def check(settings: Settings) -> int:
    """Prints every derived number, or all problems; needs neither the devices nor the data."""
    _require_sound(settings, running=False)
    for section, values in checks.table(settings).items():
        if values:
            say(_format(section, values))
    for note in checks.notes(settings):
        say(f"\nnote: {note}")
    say("\nno problems found")
    return 0


def fit(settings: Settings, resume: str) -> int:
    """Trains from the start or from a checkpoint."""
    _require_sound(settings)
    derived = checks.derive(settings)
    table = checks.table(settings)
    for section, values in table.items():
        if values:
            say(_format(section, values))
    store = _store(settings, derived)
    _require_empty(store, settings, resume)
    metrics = JSONLMetrics()
    saver = Checkpoints(
        store,
        every=settings.checkpoint.every.steps(settings.batch.tokens),
        facts={"samples_per_step": derived.samples_per_step, "sequence": derived.sequence},
        files=_files_for_checkpoints(settings),
        resume=resume,
        announce=lambda found: _record(settings, table, metrics, found),
    )
    trainer = _trainer(settings, derived, [saver], metrics)
    _bind(settings, derived, trainer)
    trainer.fit(settings.task, datamodule=settings.data)
    _leave_process_group()
    return _conclude(settings, trainer)


def validate(settings: Settings, checkpoint: str) -> int:
    """Scores a checkpoint on all held-out data."""
    _require_sound(settings)
    derived = checks.derive(settings)
    found = _store(settings, derived).resolve(checkpoint)
    if found.path is None:
        raise CheckpointError(
            f"{settings.run_dir} holds no checkpoint to validate; train first, or give "
            "--checkpoint PATH"
        )
    path = found.path
    facts = _facts(path)
    if facts["state_format"] == "deepspeed":
        settings = _replace_strategy(settings, "auto")
    trainer = _trainer(settings, derived, [_Loader(path)], None)
    _bind(settings, derived, trainer)
    trainer.validate(settings.task, datamodule=settings.data, verbose=False)
    _leave_process_group()
    say(f"{path}: step {facts['step']}")
    say(_format("held out", _held_out(settings)))
    return 0


def generate(flags: Any, load: Callable[..., Settings]) -> int:
    """Writes a continuation of a prompt to standard output."""
    from llm_train.network.init import materialise
    from llm_train.network.sample import generate as sample

    path = CheckpointStore(Path(".")).resolve(flags.checkpoint).path
    assert path is not None
    tokenizer_file = path / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise CheckpointError(
            f"{path} holds no tokenizer.json, so its token ids mean no text: it was trained on "
            "tokens without a tokenizer"
        )
    from llm_train.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_file)
    settings = load(["-c", str(path / "config.yaml")], flags.allow_import)
    device = _device(flags.device)
    with torch.device("meta"):
        network = settings.task.network_config.build()
    materialise(network, device)
    _load_weights(path, network)
    prompt = tokenizer.encode(flags.prompt).ids or [_first_token(tokenizer)]
    stop = _stop_token(tokenizer, flags.stop)
    tokens = list(prompt)
    say_piece(flags.prompt)
    shown = tokenizer.decode(prompt) if flags.prompt else ""
    for token in sample(
        network,
        torch.tensor(prompt),
        max_new_tokens=flags.tokens,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        stop=stop,
        seed=flags.seed,
    ):
        tokens.append(token)
        text = tokenizer.decode(tokens if flags.prompt else tokens[1:])
        if not text.endswith("\ufffd"):  # half of a character: wait for the other half
            say_piece(text[len(shown) :])
            shown = text
    say_piece("\n")
    return 0


def report(run_dir: Path) -> int:
    """Draws a finished or running run, and names every file it has."""
    from llm_train.report import write_report

    write_report(run_dir)
    say(f"{run_dir} holds:")
    for file in sorted(run_dir.rglob("*")):
        depth = file.relative_to(run_dir).parts
        if file.is_file() and depth[0] != "checkpoints":
            say(f"  {file}  {file.stat().st_size:,} bytes")
        elif file.is_dir() and len(depth) == 2 and depth[0] == "checkpoints":
            size = sum(f.stat().st_size for f in file.rglob("*") if f.is_file())
            say(f"  {file}/  {size:,} bytes")
    return 0


# --- building a run -------------------------------------------------------------------------------


def _require_sound(settings: Settings, *, running: bool = True) -> None:
    found = checks.problems(settings, running=running)
    if found:
        raise ConfigError("\n".join(found))


def _store(settings: Settings, derived: Derived) -> CheckpointStore:
    return CheckpointStore(
        settings.run_dir / "checkpoints",
        keep_last=settings.checkpoint.keep_last,
        keep_every=settings.checkpoint.keep_every.steps(derived.tokens_per_step),
    )


def _require_empty(store: CheckpointStore, settings: Settings, resume: str) -> None:
    if store.steps() and not resume:
        raise ConfigError(
            f"{settings.run_dir} already holds checkpoints up to step {store.steps()[-1]}; "
            "continue with --resume auto, or start another run with "
            "--trainer.default_root_dir=DIRECTORY"
        )


def _trainer(
    settings: Settings,
    derived: Derived,
    callbacks: list[pl.Callback],
    metrics: JSONLMetrics | None,
) -> pl.Trainer:
    """Lightning's Trainer with the user's arguments, and ours where the settings imply them."""
    arguments = {k: v for k, v in settings.trainer.items() if k != "__defaults__"}
    counts = settings.task.counts
    meter = Metrics(
        flops_per_token=counts.flops_per_token(derived.sequence, causal=True),
        peak_flops=_peak(settings),
    )
    loggers: list[Any] = [] if metrics is None else [metrics, *_user_loggers(settings)]
    if metrics is not None:
        for logger in loggers:
            if isinstance(logger, JSONLMetrics) or hasattr(logger, "attach"):
                logger.attach(settings.run_dir)
    arguments.update(
        strategy=_strategy(settings),
        devices=settings.devices,
        num_nodes=_nodes(settings),
        max_steps=derived.total_steps,
        max_epochs=-1,
        accumulate_grad_batches=derived.accumulation,
        val_check_interval=(derived.validate_every or derived.total_steps) * derived.accumulation,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=derived.log_every,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(settings.run_dir),
        callbacks=[meter, *(settings.trainer.get("callbacks") or []), GracefulStop()],
        logger=loggers or False,
    )
    if settings.trainer.get("enable_progress_bar") is not False:
        arguments["callbacks"].append(Progress())
    # Checkpoints come last: what other callbacks do at a step boundary belongs to the step.
    arguments["callbacks"] += callbacks
    trainer = pl.Trainer(**arguments)
    assert trainer.world_size == derived.world_size, "the number of ranks was derived wrongly"
    return trainer


def _bind(settings: Settings, derived: Derived, trainer: pl.Trainer) -> None:
    source = settings.data.source
    lengths = source.token_bytes()
    settings.task.bind(
        derived,
        dense=source.dense,
        token_bytes=None if lengths is None else torch.from_numpy(lengths),
    )
    share = Share(
        rank=trainer.global_rank,
        world_size=derived.world_size,
        per_device=derived.per_device,
        accumulation=derived.accumulation,
    )
    settings.data.bind(
        share=share,
        sequence=derived.sequence,
        seed=derived.seed,
        steps_total=derived.total_steps,
    )


def _strategy(settings: Settings) -> Any:
    strategy = settings.trainer.get("strategy", "auto")
    if not isinstance(strategy, str):
        return strategy
    name = checks.strategy_name(settings)
    if name == "SingleDevice":
        return SingleDevice(_single_device(settings))
    if name == "ZeRO":
        return ZeRO(stage=int(strategy.removeprefix("zero")))  # type: ignore[arg-type]
    return {"DDP": DDP, "FSDP": FSDP}[name]()


def _single_device(settings: Settings) -> str:
    if not settings.on_cuda:
        return "cpu"
    wanted = settings.trainer.get("devices")
    return f"cuda:{wanted[0] if isinstance(wanted, list) else 0}"


def _replace_strategy(settings: Settings, strategy: str) -> Settings:
    from dataclasses import replace

    return replace(settings, trainer={**settings.trainer, "strategy": strategy})


def _nodes(settings: Settings) -> int:
    if "GROUP_WORLD_SIZE" in os.environ:
        return int(os.environ["GROUP_WORLD_SIZE"])
    return int(settings.trainer.get("num_nodes") or 1)


def _user_loggers(settings: Settings) -> list[Any]:
    logger = settings.trainer.get("logger")
    if logger is None or isinstance(logger, bool):
        return []
    return list(logger) if isinstance(logger, list) else [logger]


def _peak(settings: Settings) -> float:
    if not settings.on_cuda or not torch.cuda.is_available():
        return 0.0
    precision = str(settings.trainer.get("precision") or "32-true")
    fp32 = "tf32" if torch.get_float32_matmul_precision() != "highest" else "fp32"
    dtype = "bf16" if precision.startswith("bf16") else fp32
    return dense_peak_flops(torch.cuda.get_device_name(0), dtype) or 0.0


def _leave_process_group() -> None:
    """Ends communication while the interpreter is whole; gloo's threads can crash its shutdown."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


# --- around a run ---------------------------------------------------------------------------------


class _Loader(pl.Callback):
    """Puts a checkpoint's weights into the network before validation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        _load_weights(self.path, pl_module.network)


def _load_weights(path: Path, network: torch.nn.Module) -> None:
    if _facts(path)["state_format"] == "deepspeed":
        from llm_train.strategy.zero import load_weights

        load_weights(path / "state", network)
    else:
        from llm_train.strategy import state

        state.load(path / "state", network, None)


def _facts(path: Path) -> Mapping[str, Any]:
    return CheckpointStore(path.parent).read_manifest(path).facts


def _files_for_checkpoints(settings: Settings) -> dict[str, str]:
    files = {"config.yaml": settings.text}
    source = settings.data.source
    if isinstance(source, TokenShards):
        files["tokenizer.json"] = (Path(source.path) / "tokenizer.json").read_text(encoding="utf-8")
    return files


def _record(settings: Settings, table: dict[str, Any], metrics: JSONLMetrics, found: Found) -> None:
    """Says and writes what is about to run, once for the directory and once for the date."""
    for path, reason in found.skipped:
        say(f"\nskipped {path}: {reason}")
    if found.path is not None:
        say(f"\nresuming from {found.path}")
        _show_changes(found.path, settings)
    run_dir = settings.run_dir
    (run_dir / "records").mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    (run_dir / "config.yaml").write_text(settings.text, encoding="utf-8")
    (run_dir / "records" / f"{stamp}.yaml").write_text(settings.text, encoding="utf-8")
    (run_dir / "derived.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    if found.path is None:
        metrics.log_event("start", 0)
    else:
        metrics.log_event("resume", int(_facts(found.path)["step"]))


def _show_changes(start: Path, settings: Settings) -> None:
    """A before/after table of every value that differs from when the checkpoint was written."""
    before = _flat(yaml.safe_load((start / "config.yaml").read_text()))
    after = _flat(settings.plain)
    changed = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    if not changed:
        return
    say("\nchanged since the checkpoint (the new values apply)")
    width = max(len(key) for key in changed)
    for key in changed:
        say(f"  {key:{width}}  {before.get(key, '-')} -> {after.get(key, '-')}")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: value}


def _conclude(settings: Settings, trainer: pl.Trainer) -> int:
    number = settings.task.stop_signal
    path = settings.run_dir / "checkpoints"
    step = trainer.global_step
    if step < settings.task.derived.total_steps:
        name = signal.Signals(number).name if number else "a callback"
        say(f"\nstopped by {name} after step {step}; saved in {path}; continue with --resume auto")
        return 128 + number if number else 0
    say(f"\ndone: {step} steps, {step * settings.task.derived.tokens_per_step:,} tokens")
    if "val/loss" in settings.task.latest:
        say(_format("held out", _held_out(settings)))
    say(f"\nwrote {settings.run_dir}/metrics.jsonl, config.yaml, derived.json and checkpoints/")
    return 0


def _held_out(settings: Settings) -> dict[str, Any]:
    latest = settings.task.latest
    result: dict[str, Any] = {"loss (nats per token)": round(latest["val/loss"], 4)}
    if "val/bits_per_byte" in latest:
        result["bits per byte"] = round(latest["val/bits_per_byte"], 4)
    for key, value in settings.data.source.description().items():
        if key.endswith("bits_per_byte") and value is not None:
            result[key.replace("_", " ")] = round(float(value), 4)
    return result


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {name} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    return device


def _first_token(tokenizer: Any) -> int:
    """What stands before a text: the end of the one before it, else the first id."""
    from llm_train.data.base import END_OF_TEXT

    found = tokenizer.token_to_id(END_OF_TEXT)
    return 0 if found is None else int(found)


def _stop_token(tokenizer: Any, text: str) -> int | None:
    from llm_train.data.base import END_OF_TEXT

    found = tokenizer.token_to_id(text or END_OF_TEXT)
    if text and found is None:
        raise ConfigError(f"--stop {text!r} is not a single token of this tokenizer")
    return None if found is None else int(found)


def say_piece(text: str) -> None:
    """Writes without a line end."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _format(section: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    width = max(len(key) for key in values)
    lines = [f"\n{section}"]
    for key, value in values.items():
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        lines.append(f"  {key:{width}}  {text}")
    return "\n".join(lines)
