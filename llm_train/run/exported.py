"""Export and import of a run: what belongs to a checkpoint, gathered for ``llm_train.exchange``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_train.checkpoint import manifest
from llm_train.data.base import END_OF_TEXT
from llm_train.exchange.families import fitting
from llm_train.exchange.outgoing import Export, Form
from llm_train.exchange.proof import Proof
from llm_train.exchange.weights import CheckpointWeights
from llm_train.model.network.transformer import Transformer
from llm_train.run.pretrained import open_checkpoint
from llm_train.settings import Settings
from llm_train.trainer.logger.records import read_metrics


def export(
    where: str,
    out: Path,
    load: Callable[[Sequence[str]], Settings],
    form: Form,
) -> Proof:
    """Writes a checkpoint as a folder in Hugging Face's format.

    Args:
        where: a checkpoint directory, or a run directory for its newest checkpoint.
        out: the folder, which must not exist yet.
        load: reads a configuration.
        form: how it is written.

    Raises:
        ConfigError: no architecture of transformers computes what the network computes.
        LLMTrainError: the proof fails; nothing is left then.
    """
    path, settings = open_checkpoint(where, load)
    network = settings.task.network_config
    fitting(network, custom=form.custom)
    assert isinstance(network, Transformer), "no other fits"
    file = path / "tokenizer.json"
    task = Export(
        weights=CheckpointWeights(path),
        network=network,
        tokenizer=file.read_text(encoding="utf-8") if file.is_file() else "",
        boundary=settings.data.recipe.boundary or END_OF_TEXT,
        form=form,
    )
    return task.write(out, settings.run_dir.name, _facts(path, settings))


def _facts(path: Path, settings: Settings) -> dict[str, Any]:
    """Numbers of the run that a model card gives."""
    metadata = manifest.read(path).metadata
    step = metadata["step"]
    counts = settings.task.counts
    facts = {
        "parameters": f"{counts.parameters:,}",
        "steps": f"{step:,}",
        "checkpoint": path.name,
    }
    metrics = path.parent.parent / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.is_file() else []
    for record in (record for record in records if record["step"] == step):
        facts |= {k: f"{v:.4f}" for k, v in record.items() if k.startswith("val/")}
    return facts
