"""A folder in Hugging Face's format as a run of ours: a checkpoint of step 0 and a configuration.

The run continues training (``init_from``), generates and is exported like any other. Weights pass
through memory one at a time. Matrices keep the type in which the folder has them; vectors are
widened, since Gemma's norms would lose digits where their distance from 1 becomes a weight.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_train.exchange.proof import Proof, prove
from llm_train.exchange.safetensor_files import readable, transformers
from llm_train.exchange.staging import staged, write_run
from llm_train.exchange.tokenizer_files import FILE as TOKENIZER
from llm_train.exchange.weights import CheckpointWeights, FolderWeights, open_folder
from llm_train.runtime import yaml12

_SEQUENCE = 1024  # most tokens of a sample that the written configuration trains on
_SAMPLES = 16  # of a step


def import_folder(folder: Path, out: Path) -> Proof:
    """Writes a run directory.

    Args:
        folder: in Hugging Face's format.
        out: does not exist, or is empty.

    Raises:
        ConfigError: an architecture, or a feature of one, that is not known here.
        LLMTrainError: the proof fails; nothing is left then.
    """
    weights = open_folder(folder)
    texts = {"config.yaml": yaml12.dump(_configuration(weights, out))}
    if (folder / TOKENIZER).is_file():
        texts[TOKENIZER] = (folder / TOKENIZER).read_text(encoding="utf-8")
    like = {
        f"model.{name}": tensor.float() if tensor.dim() < 2 else tensor
        for name, tensor in weights.like.items()
    }

    def read(key: str) -> Tensor:
        return weights.read(key.removeprefix("model.")).to(like[key].dtype)

    with staged(out) as stage:
        written = CheckpointWeights(write_run(stage, like, read, texts, _METADATA))
        proof = prove(weights.network, written.read, folder, bare=False)
        proof.require(stage)
    return proof


# Of a run that has trained nothing, on no data.
_METADATA: Mapping[str, Any] = {
    "step": 0,
    "world_size": 1,
    "state_format": "dcp",
    "data": {"consumed": 0, "fingerprint": ""},
    "seed": 0,
    "sequence": 0,
    "samples_per_step": 1,
    "optimizer": "",
    "stages": [],
    "learning_rate": 0.0,
}


def _configuration(weights: FolderWeights, out: Path) -> dict[str, Any]:
    """A configuration that continues training; the text is to be named."""
    config: dict[str, Any] = yaml12.load(Path(__file__).with_name("imported.yaml").read_text())
    network, name = weights.network, out.name
    sequence = min(_SEQUENCE, network.max_sequence)
    config["batch"] |= {"tokens": _SAMPLES * sequence, "sequence": sequence}
    config["init_from"]["path"] = str(out)
    config["model"]["network"]["init_args"] = _arguments(weights)
    # Not where the weights are, which may be runs/NAME: a new run moves an earlier one away.
    config["trainer"]["default_root_dir"] = f"runs/{name}-continued"
    data = config["data"]
    data["source"]["init_args"] = {"path": f"data/{name}"}
    if (weights.path / TOKENIZER).is_file():
        library = transformers()
        with readable(weights.path / TOKENIZER):
            theirs = library.AutoTokenizer.from_pretrained(weights.path, local_files_only=True)
        arguments = {"path": str(out / TOKENIZER), "end_of_text": theirs.eos_token or ""}
        data["recipe"]["init_args"]["tokenizer"]["init_args"] = arguments
    else:
        del data["recipe"]
    return config


def _arguments(weights: FolderWeights) -> dict[str, Any]:
    """What differs from the defaults, as YAML has it."""
    defaults = {field.name: field.default for field in dataclasses.fields(weights.network)}
    return {
        name: value
        for name, value in weights.arguments.items()
        if getattr(weights.network, name) != defaults[name] and value != {}
    }
