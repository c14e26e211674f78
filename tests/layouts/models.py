"""Small models of transformers, and tokens for them."""

from __future__ import annotations

import torch
import transformers

TOKENS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def with_biases(**more):
    return {**SMALL, "attention_bias": True, **more}


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=32, n_head=4, n_layer=2, vocab_size=50, bos_token_id=1, eos_token_id=2
        )
    )


def opt(before):
    names = ("num_attention_heads", "num_hidden_layers", "hidden_size", "vocab_size")
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            ffn_dim=48,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
            do_layer_norm_before=before,
            **{name: SMALL[name] for name in names},
        )
    )


TRANSFORMERS = {
    "gpt2": gpt2,
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**with_biases(num_key_value_heads=2))
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**with_biases(num_key_value_heads=2, head_dim=8))
    ),
    "gemma": lambda: transformers.GemmaForCausalLM(
        transformers.GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8)
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8)
    ),
    "olmo2": lambda: transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(**SMALL, num_key_value_heads=2)
    ),
    "phi3": lambda: transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**SMALL, num_key_value_heads=2)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL)),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "opt": lambda: opt(before=True),
}
