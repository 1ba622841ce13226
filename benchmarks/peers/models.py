"""Builds the models of the peers in a given shape."""

from __future__ import annotations

import sys

from torch import nn

from benchmarks.work import Job, Shape


def nanogpt(job: Job) -> nn.Module:
    """Builds the GPT of the checkout that the job's option ``path`` names."""
    sys.path.insert(0, job.options["path"])
    from model import GPT, GPTConfig

    shape = job.shape
    return GPT(
        GPTConfig(
            block_size=shape.sequence,
            vocab_size=shape.vocab,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_embd=shape.width,
            dropout=0.0,
            bias=shape.bias,
        )
    )


def hugging_face(shape: Shape, *, tied: bool = False) -> nn.Module:
    """Builds the GPT-2 or Llama of transformers, with its SDPA attention; GPT-2 is always tied."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if shape.family == "gpt2":
        config = GPT2Config(
            vocab_size=shape.vocab,
            n_positions=shape.sequence,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.mlp,
            activation_function="gelu",  # the exact GELU, as in nanoGPT
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
        )
        return GPT2LMHeadModel(config)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.sequence,
            tie_word_embeddings=tied,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
