"""Where attention heads, LoRA pairs and output heads are in known models, by parameter names."""

from stableopt.layouts.attention import AttentionLayout, NormLayout, Projection
from stableopt.layouts.bounds import logit_bound, norm_values
from stableopt.layouts.find_attention import find_attention
from stableopt.layouts.heads import OutputHead, find_head
from stableopt.layouts.lora import LoraPair, find_lora_pairs
from stableopt.layouts.rows import check_layout, key_rows, query_rows

__all__ = [
    "AttentionLayout",
    "LoraPair",
    "NormLayout",
    "OutputHead",
    "Projection",
    "check_layout",
    "find_attention",
    "find_head",
    "find_lora_pairs",
    "key_rows",
    "logit_bound",
    "norm_values",
    "query_rows",
]
