"""Models of the peers, built to a shape."""

from __future__ import annotations

from torch import nn

from benchmarks.work import Shape


def hugging_face(shape: Shape) -> nn.Module:
    """GPT-2 or Llama of transformers, with its SDPA attention."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if shape.family == "gpt2":
        config = GPT2Config(
            vocab_size=shape.vocab,
            n_positions=shape.sequence,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.mlp,
            activation_function="gelu",  # exact, as nanoGPT has it
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
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
