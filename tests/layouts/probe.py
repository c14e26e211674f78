"""Compute the attention logits of a model with its own code, and compare with a layout's."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch
from torch.nn import functional

from stableopt.layouts import check_layout, key_rows, logit_bound, query_rows


@contextmanager
def seen_queries_and_keys():
    """Record query, key and scale of every call of scaled_dot_product_attention."""
    seen, original = [], functional.scaled_dot_product_attention

    def record(query, key, value, *args, **kwargs):
        scale = kwargs.get("scale")
        seen.append(
            (query.detach(), key.detach(), query.shape[-1] ** -0.5 if scale is None else scale)
        )
        return original(query, key, value, *args, **kwargs)

    functional.scaled_dot_product_attention = record
    torch.nn.functional.scaled_dot_product_attention = record
    try:
        yield seen
    finally:
        functional.scaled_dot_product_attention = original


def logits_of(forward):
    """Return the logits of every attention that ``forward`` runs, ``(heads, …)`` float64 each."""
    with torch.no_grad(), seen_queries_and_keys() as seen:
        forward()
    found = []
    for query, key, scale in seen:
        if query.dim() == 3:  # the heads of torch's own module may be in the batch
            raise AssertionError("expected (batch, heads, time, head_dim)")
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        logits = scale * query.double() @ key.double().mT
        found.append(logits.transpose(0, 1).flatten(1))
    return found


def spread(model, seed=0):
    """Give every parameter values that no initialisation would, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            size = 1.0 if parameter.dim() == 1 else 2 / math.sqrt(parameter.shape[-1])
            parameter.copy_(size * drawn)
    return model


def prove(model, layouts, logits, *, at=0):
    """Prove the layout of block ``at`` by what the model computes.

    Its bound is above its logits; and the rows of one head, scaled, change the logits of that
    head (in GQA: of those that share its key) by the factor, and no others.

    Args:
        model: Whose parameters they are.
        layouts: As they were found.
        logits: Returns the logits of every block, one call of the model.
        at: The block; what lies before it is not changed by its own scaling.
    """
    layout = layouts[at]
    parameters = dict(model.named_parameters())
    check_layout(layout, parameters)
    before = logits()[at]
    assert len(before) == layout.heads
    assert before.abs().amax() > 1e-2
    bound = logit_bound(layout, parameters)
    if layout.norm is not None or layout.q_norm is not None:
        assert (before.abs().amax(1) <= bound).all()
        assert (bound < 200 * before.abs().amax(1)).all()
    else:
        assert bound.isnan().all()
    if layout.q_norm is not None:
        return
    group = layout.heads // layout.key_heads
    scale_rows(query_rows(layout, parameters), 1, 1.5)
    scale_rows(key_rows(layout, parameters), layout.key_heads - 1, 0.5)
    factors = torch.ones(layout.heads, dtype=torch.float64)
    factors[1] *= 1.5
    factors[-group:] *= 0.5
    torch.testing.assert_close(logits()[at], factors[:, None] * before, rtol=1e-3, atol=1e-4)
    after = logit_bound(layout, parameters)
    torch.testing.assert_close(after, factors * bound, rtol=1e-4, atol=0, equal_nan=True)


def scale_rows(rows, head, factor):
    """Scale the rows of one head in place, its biases too."""
    for tensor in rows:
        if tensor is not None:
            tensor[head] *= factor
