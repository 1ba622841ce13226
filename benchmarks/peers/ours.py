"""Trains with llm_train through its own command line, including loader, Trainer and logging.

Its variants are eager, compiled (each block) and network (one graph). The option ``overrides``
holds further ``--key=value`` arguments; with ``return_memory`` glibc gives freed memory back, as it
does by default.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml

from benchmarks.work import Job, Pacer, prepare

_ENDLESS = 10_000_000


class Pace(pl.Callback):
    """Reports every finished optimizer step to the pacer."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pacer: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts pacing when the model exists."""
        self._pacer = Pacer(self._job, pl_module.counts.parameters)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reports a step after its last micro-batch."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._pacer.step()


def configuration(job: Job, directory: Path) -> dict[str, Any]:
    """Returns the shape as one of our configurations."""
    shape = job.shape
    gpt2 = shape.family == "gpt2"
    # The presets do so, too; one graph for everything fuses the loss by itself.
    chunked = shape.vocab >= 8192 and job.variant != "network"
    network = {
        "vocab_size": shape.vocab,
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "mlp_width": shape.mlp,
        "max_sequence": shape.sequence,
        "norm": "layernorm" if gpt2 else "rmsnorm",
        "activation": "gelu_erf" if gpt2 else "swiglu",
        "positions": "learned" if gpt2 else "rotary",
        "tied": gpt2,
        "bias": shape.bias,
    }
    return {
        "seed": 1,
        "budget": f"{_ENDLESS} steps",
        "batch": {
            "tokens": shape.tokens_per_step,
            "sequence": shape.sequence,
            "per_device": shape.batch,
        },
        "model": {
            "network": {"class_path": "Transformer", "init_args": network},
            "loss": {"class_path": "ChunkedCausalLM" if chunked else "CausalLM"},
            "optimizer": {"class_path": "AdamW", "init_args": {"learning_rate": 6e-4}},
            "schedule": {"class_path": "WarmupCosine", "init_args": {"warmup": "100 steps"}},
            "compile": {"eager": "none", "compiled": "blocks", "network": "network"}[job.variant],
        },
        "data": {
            "source": {"class_path": "TokenShards", "init_args": {"path": job.tokens + ".shards"}}
        },
        "trainer": {
            "accelerator": "gpu" if job.device == "cuda" else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if job.dtype == "bfloat16" else "32-true",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 10,
            "default_root_dir": str(directory / "run"),
            "enable_progress_bar": False,
        },
    }


def write_shards(tokens: str, vocab: int, shards: int = 1, name: str = "") -> None:
    """Writes the same tokens as a directory that TokenShards reads, by default TOKENS.shards."""
    import numpy as np
    import tokenizers

    from llm_train.data.shards import (
        TOKEN_BYTES,
        TOKENIZER,
        ShardWriter,
        describe_file,
        dtype_for,
        sums_of,
    )
    from llm_train.data.token_manifest import VERSION, Manifest, sums_name

    directory = Path(name or tokens + ".shards")
    if (directory / "manifest.json").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    ids = np.fromfile(tokens, dtype=np.uint16)
    words = tokenizers.models.WordLevel({str(i): i for i in range(vocab)}, unk_token="0")
    tokenizers.Tokenizer(words).save(str(directory / TOKENIZER))
    np.save(directory / TOKEN_BYTES, np.ones(vocab, dtype=np.int32))
    splits = {}
    for name, part in (("train", ids[:-10_000]), ("held_out", ids[-10_000:])):
        with ShardWriter(directory, name, vocab, -(-part.size // shards)) as writer:
            writer.add(part, documents=1)
        splits[name] = writer.stored()
        sums_of(directory, splits[name].shards).tofile(directory / sums_name(name))
    Manifest(
        version=VERSION,
        dtype=dtype_for(vocab),
        vocab_size=vocab,
        end_of_text=-1,
        splits=splits,
        others=[
            describe_file(directory / name)
            for name in (TOKENIZER, TOKEN_BYTES, *map(sums_name, splits))
        ],
        recipe={},
        provenance={},
        skipped={},
        references={},
        examples={},
        encoder="",
        content="",
    ).save(directory)


def main() -> None:
    job = Job.from_arguments()
    prepare(job)
    write_shards(job.tokens, job.shape.vocab)
    from llm_train.cli import main as llm_train
    from llm_train.testing.attach import attached

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = configuration(job, directory)
        file = directory / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        if job.options.get("return_memory"):
            from llm_train.run import trainer as assembly

            assembly.keep_freed_memory = lambda: False
        pace = Pace(job)
        with attached(pace, first=False):
            llm_train(["fit", "-c", str(file), *job.options.get("overrides", [])])


if __name__ == "__main__":
    sys.exit(main())
