"""One file in GGUF, the format of llama.cpp, of the architectures and features that it has too.

Names, keys and layouts are those of llama.cpp's own converter: matrices as (outputs, inputs), and
for Llama the rows of queries and keys so that the two features of a rotation are neighbours.
All numbers are fp32 (llama.cpp's own tools make smaller files of it), and all are in memory at
a time, as they are again for the proof.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from torch import Tensor

from llm_train.errors import ConfigError
from llm_train.exchange.families import Family
from llm_train.model.network.transformer import Transformer
from llm_train.runtime.extras import library

FILE = "model.gguf"
PROOF = "proof-gguf.json"
_ACTIVATIONS = {"llama": "swiglu", "qwen3": "swiglu", "gpt2": "gelu"}
# What llama.cpp's own code for the text of GPT-2 does, under the name "gpt-2" there.
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_UNKNOWN = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


class GGUF(NamedTuple):
    """What is to be written.

    Attributes:
        family: of the network.
        network: that has the weights.
        tokenizer: the text of ``tokenizer.json``; "" where there is none.
        boundary: the token between documents.
    """

    family: Family
    network: Transformer
    tokenizer: str
    boundary: str

    def require(self) -> None:
        """Refuses what llama.cpp computes in another way, or what nothing here could compare.

        Raises:
            ConfigError: the features, by their names.
        """
        network, kind = self.network, self.family.model_type
        scaling = self.family.config(network).get("rope", {}).get("rope_type", "default")
        named, wanted = f"{kind} with activation={network.activation}", _ACTIVATIONS.get(kind)
        said = {
            f"{named} (only {_ACTIVATIONS})": network.activation != wanted,
            "bias=True": network.bias and self.family.rotary,
            f"rotary_scaling={type(network.rotary_scaling).__name__}": scaling != "default",
            "a tokenizer other than byte-level BPE with GPT-2's words and an end of text": (
                self.tokenizer != "" and not _is_gpt2(self.tokenizer, self.boundary)
            ),
        }
        if found := [text for text, wrong in said.items() if wrong]:
            raise ConfigError(f"--gguf has no proven form for {', '.join(found)}; leave it out")

    def write(self, folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Writes the file.

        Args:
            folder: where.
            tensors: by their names in transformers.
        """
        gguf, kind = library("gguf", "gguf", "--gguf"), self.family.model_type
        writer = gguf.GGUFWriter(folder / FILE, kind)
        self._describe(writer)
        self._add_tokenizer(writer, gguf.TokenType)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], self.network.layers)
        for theirs, tensor in tensors:
            name = names.get_name(theirs, (".weight", ".bias"))
            values = self._laid_out(theirs, tensor).float().contiguous()
            writer.add_tensor(name, values.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _laid_out(self, theirs: str, tensor: Tensor) -> Tensor:
        """In GPT-2 turned back, in Llama with pairs of a rotation together."""
        module, network = theirs.split(".")[-2], self.network
        if module.startswith("c_") and tensor.dim() == 2:
            return tensor.T
        if self.family.model_type == "llama" and module in ("q_proj", "k_proj"):
            heads = network.heads if module == "q_proj" else network.key_value_heads
            return tensor.reshape(heads, 2, -1, network.width).transpose(1, 2).flatten(0, 2)
        return tensor

    def _describe(self, writer: Any) -> None:
        writer.add_context_length(self.network.max_sequence)
        writer.add_embedding_length(self.network.width)
        writer.add_block_count(self.network.layers)
        writer.add_feed_forward_length(self.network.hidden)
        writer.add_head_count(self.network.heads)
        writer.add_vocab_size(self.network.vocab_size)
        if not self.family.rotary:
            writer.add_layer_norm_eps(self.network.norm_eps)
            return
        writer.add_layer_norm_rms_eps(self.network.norm_eps)
        writer.add_head_count_kv(self.network.key_value_heads)
        writer.add_rope_dimension_count(self.network.head_dim)
        writer.add_rope_freq_base(self.family.config(self.network)["rope"]["rope_theta"])

    def _add_tokenizer(self, writer: Any, kinds: Any) -> None:
        """Tokens in the order of their ids, one for each row of the embedding, and merges."""
        writer.add_tokenizer_model("gpt2" if self.tokenizer else "none")
        if not self.tokenizer:
            return
        plain, rows = json.loads(self.tokenizer), range(self.network.vocab_size)
        ids = Tokenizer.from_str(self.tokenizer).get_vocab()
        tokens = {row: f"[PAD{row}]" for row in rows} | {i: token for token, i in ids.items()}
        types = dict.fromkeys(rows, kinds.UNUSED) | dict.fromkeys(ids.values(), kinds.NORMAL)
        for token in plain["added_tokens"]:
            types[token["id"]] = kinds.CONTROL if token["special"] else kinds.USER_DEFINED
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([tokens[row] for row in rows])
        writer.add_token_types([types[row] for row in rows])
        merges = plain["model"]["merges"]
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
        writer.add_bos_token_id(ids[self.boundary])
        writer.add_eos_token_id(ids[self.boundary])
        writer.add_add_bos_token(False)


def _is_gpt2(text: str, boundary: str) -> bool:
    plain = json.loads(text)
    model, words = plain["model"], plain["pre_tokenizer"] or {}
    return (
        model["type"] == "BPE"
        and not any(model.get(key) for key in _UNKNOWN)
        and not plain["normalizer"]
        and all(words.get(key) == value for key, value in _GPT2.items())
        and Tokenizer.from_str(text).token_to_id(boundary) is not None
    )
