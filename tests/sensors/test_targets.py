"""Which weights are exempt from limits by their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stableopt.sensors.targets import Targets, without_limits


@pytest.mark.parametrize(
    "layer",
    [nn.TransformerDecoderLayer(32, 4, 64), nn.TransformerEncoderLayer(32, 4, 64)],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("heads", [None, ("output.*",)])
def test_layers_of_torch_are_judged(layer, heads):
    model = nn.ModuleDict({"layer": layer, "last": nn.Linear(32, 100)})
    targets = Targets(torch.optim.SGD(model.parameters()), model, None, heads)
    names = targets.weights()
    assert "layer.self_attn.in_proj_weight" in names
    assert targets.heads == (frozenset() if heads else {"last.weight"})


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.sa.heads.0.key.weight",
        "encoder.layer.0.attn.q_head.weight",
        "header.weight",
        "layers.0.attention_head.weight",
        "layers.0.multi_head.in_proj_weight",
        "layers.0.multihead_attn.in_proj_weight",
        "layers.0.position_wise_ff.0.weight",
        "layers.0.positionwise_feedforward.w_1.weight",
        "layers.0.position_encoder.layers.0.weight",
    ],
)
def test_a_name_that_only_has_such_a_word_in_it_is_judged(name):
    assert without_limits(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "classification_head.out_proj.weight",
        "classifier.weight",
        "cls_classifier.weight",
        "codec_head.weight",
        "embed_out.weight",
        "head.fc.weight",
        "head_dist.weight",
        "heads.head.weight",
        "lm_head.weight",
        "logits_proj.weight",
        "module.lm_head.decoder.weight",
        "score.weight",
    ],
)
def test_published_names_of_output_layers(name):
    assert without_limits(name) == "an output layer"


@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.position_embeddings.weight",
        "encoder.pos_embedding",
        "layers.0.blocks.0.attn.relative_position_bias_table",
        "model.decoder.embed_positions.weight",
        "pos_embed",
        "position_embedding_table.weight",
        "positional_embedding",
        "positions.weight",
        "positions_embed.weight",
        "text_model.embeddings.position_embedding.weight",
        "transformer.wpe.weight",
    ],
)
def test_published_names_of_learned_positions(name):
    assert without_limits(name) == "learned positions"
