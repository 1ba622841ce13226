"""A checkpoint as a folder that the Auto classes of ``transformers`` open, with a proof.

The folder is filled under another name and gets its own once the proof holds. Weights pass through
memory a shard at a time.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_train.exchange import safetensor_files, tokenizer_files
from llm_train.exchange.families import Family, fitting
from llm_train.exchange.gguf_file import FILE, GGUF, PROOF
from llm_train.exchange.proof import Proof, prove
from llm_train.exchange.staging import staged
from llm_train.exchange.weights import Weights
from llm_train.model.network.transformer import Transformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Form(NamedTuple):
    """How it is written.

    Attributes:
        dtype: of the stored weights.
        shard_bytes: most bytes of a file.
        custom: whether code may travel with it, where no architecture of transformers fits.
        gguf: whether a file for llama.cpp is written, too.
    """

    dtype: torch.dtype = torch.float32
    shard_bytes: int = 5_000_000_000
    custom: bool = False
    gguf: bool = False


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is to be written.

    Attributes:
        weights: of the checkpoint.
        network: that has them.
        tokenizer: the text of ``tokenizer.json``; "" where there is none.
        boundary: the token between documents; "" is none.
        form: how it is written.
    """

    weights: Weights
    network: Transformer
    tokenizer: str
    boundary: str
    form: Form

    def write(self, out: Path, name: str, facts: Mapping[str, Any]) -> Proof:
        """Writes the folder.

        Args:
            out: does not exist, or is empty.
            name: of the run, for the model card.
            facts: numbers of the run, likewise.

        Raises:
            ConfigError: no architecture fits, or ``out`` holds something.
            LLMTrainError: the proof fails.
        """
        family = fitting(self.network, custom=self.form.custom)
        llama_cpp = GGUF(family, self.network, self.tokenizer, self.boundary)
        if self.form.gguf:
            llama_cpp.require()
        with staged(out) as stage:
            safetensor_files.write(stage, self._tensors(family), self.form.shard_bytes)
            self._write_texts(stage, family)
            own = partial(self._rounded, family)
            proof = prove(self.network, own, stage, bare=True, trust=bool(family.code))
            proof.require(stage)
            if self.form.gguf:
                llama_cpp.write(stage, self._tensors(family))
                prove(self.network, own, stage, bare=True, gguf=FILE).require(stage, PROOF)
            rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
            card = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
            (stage / "README.md").write_text(card.format(name=name, rows=rows, proof=proof))
        return proof

    def _tensors(self, family: Family) -> Iterator[tuple[str, Tensor]]:
        for name in self.weights.shapes:
            tensor = self.weights.read(name)
            yield from self._stored(family, name, tensor).items()

    def _stored(self, family: Family, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Theirs, as a file holds them."""
        parts = family.theirs(self.network, name, tensor)
        return {theirs: part.to(self.form.dtype) for theirs, part in parts.items()}

    def _rounded(self, family: Family, name: str) -> Tensor:
        """A parameter as the files hold it, where they hold fewer digits."""
        tensor = self.weights.read(name)
        if self.form.dtype == torch.float32:
            return tensor
        stored = self._stored(family, name, tensor)
        return family.ours(self.network, name, lambda theirs: stored[theirs].float())

    def _write_texts(self, stage: Path, family: Family) -> None:
        positions = self.network.max_sequence
        ids = tokenizer_files.write(self.tokenizer, stage, self.boundary, positions)
        values = family.config(self.network)
        rope = values.pop("rope", None)
        if rope:
            values["rope_theta"] = rope.pop("rope_theta")
            values["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        config = {
            "architectures": [family.causal_lm],
            "model_type": family.model_type,
            "torch_dtype": str(self.form.dtype).removeprefix("torch."),
            **values,
            **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **ids},
        }
        if family.code:
            shutil.copy(Path(__file__).with_name(f"{family.code}.py"), stage)
        (stage / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (stage / "generation_config.json").write_text(json.dumps(ids, indent=1) + "\n")
