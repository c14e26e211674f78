"""Keep attention logits under a bound by scaling the queries and keys of single heads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from stableopt.errors import ConfigError, require_number
from stableopt.functional.attention_logits import qk_scales
from stableopt.layouts import (
    AttentionLayout,
    NormLayout,
    check_layout,
    find_attention,
    key_rows,
    logit_bound,
    query_rows,
)
from stableopt.runtime.words import listed
from stableopt.transforms.evidence import is_about
from stableopt.transforms.protocol import Change, Found, Needs, Phase
from stableopt.transforms.selection import NothingSelectedError, Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.transforms.weights import ROOM, aim, check_strictness

logger = logging.getLogger("stableopt")

SIGNAL = "max_attention_logit"
"""The signal of ``observe()`` with measured logits."""


@dataclass(frozen=True)
class QKClip:
    r"""Scale the query and key rows of a head whose attention logits may become too large.

    Both by :math:`\sqrt{\tau / m}`, with their biases, so that its logits shrink by τ/m: m is the
    largest logit if you measure it, ``opt.observe(max_attention_logit={block: per_head})``, else
    the largest one that the weights allow, which needs no forward pass:
    :math:`m = d\,\lVert W_q W_k^\top \rVert_2 / \sqrt{d_h}` with the gain of the norm that feeds
    them folded in. That bound holds for whatever comes out of that norm, as long as logits are q·k
    times a scale, and is in training two to six times above what occurs: it is held against
    ``slack`` times the limit. ``slack=1`` makes the limit a guarantee.

    Other heads stay as they are, bit for bit. Rotary embeddings are bounded by
    :math:`\lVert W_q \rVert \lVert W_k \rVert`; where heads share keys (GQA) the queries take all
    of it; behind a QK-norm it is the gains of that norm that are scaled, for all of its heads. A
    block of which that would scale something frozen is left out. The state of the optimizer is
    left alone: it averages gradients, and the gradient of a scaled head changes by one factor,
    once.

    Args:
        limit: τ: largest attention logit, above 0.
        slack: How far above ``limit`` the bound from weights may be; at least 1.
        every: Updates from one look at the weights to the next; measured logits act at once.
        layouts: Where queries and keys are, as :class:`~stableopt.layouts.AttentionLayout`; looked
            up in ``model=`` if not given.
        params: Patterns of the names of query weights; all blocks if not given.

    Raises:
        ConfigError: A value is out of range, a layout does not fit, or no block is found.

    Cost:
        Every ``every`` steps two products of ``d_h`` by d and three eigenproblems of ``d_h`` rows
        for each head.

    Reference:
        Kimi Team, "Kimi K2", 2025, arXiv:2507.20534 (QK-clip, with measured logits); Dehghani et
        al., 2023, arXiv:2302.05442 (logit growth).

    Example:
        >>> QKClip(100.0, slack=1.0)
        QKClip(limit=100.0, slack=1.0, every=10, layouts=None, params=None)
    """

    limit: float = 100.0
    slack: float = 3.0
    every: int = 10
    layouts: Sequence[AttentionLayout] | None = None
    params: Select = None

    phase: ClassVar[Phase] = Phase.WEIGHT
    metric: ClassVar[str] = "attention_logit"
    routine: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs(signals=(SIGNAL,))

    def __post_init__(self) -> None:
        require_number("limit", self.limit, 1e30, "the largest attention logit")
        check_strictness(self.slack, self.every)
        if self.layouts is not None:
            object.__setattr__(self, "layouts", _layouts(self.layouts))
        object.__setattr__(self, "params", selection("params", self.params))

    def find(self, site: Site) -> Found:
        """Find the attention blocks of ``site``."""
        if self.layouts is None and site.model is None:
            raise NothingSelectedError(
                f"transforms has {self!r}, which needs to know where queries and keys are: give "
                "model=, or layouts= by parameter names"
            )
        given = self.layouts
        if given is None:
            given = () if site.model is None else find_attention(site.model)
        chosen = {target.name for target in site.targets}
        blocks = []
        for layout in given:
            check_layout(layout, site.named(_names_of(layout)))
            block = _block(layout, site)
            if layout.query.weight in chosen and block is not None:
                blocks.append(block)
        if not blocks:
            raise NothingSelectedError(
                f"transforms has {self!r}, which finds no attention block that is trained: give "
                "layouts= by parameter names"
            )
        layouts = [block.layout for block in blocks]
        unbounded = [b.name for b in layouts if b.norm is None and b.q_norm is None]
        if unbounded:
            logger.info(
                "the weights of %s allow no bound: QKClip acts there on observe(%s=...) alone",
                listed(unbounded, 4),
                SIGNAL,
            )
        weights = dict.fromkeys(n for b in layouts for n in (b.query.weight, b.key.weight))
        return Found([site.trained[name] for name in weights], blocks)

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Scale in place."""
        blocks: list[_Block] = found.parts
        signal = view.signals.get(SIGNAL)
        _check_keys(view, signal, [block.layout.name for block in blocks])
        looks = view.step % self.every == 0
        given = [signal_of(signal, block.layout.name) for block in blocks]
        changes = []
        for block, measured in zip(blocks, given, strict=True):
            if measured is None and not looks:
                continue
            limit = self.limit * (self.slack if measured is None else 1.0)
            alone = sum(other is measured for other in given) == 1
            logits = _logits(view, block.layout, measured, alone)
            changes += _clip(view, block, logits, limit)
        return changes


class _Block(NamedTuple):
    """An attention block, and what is scaled where a head of it is beyond the limit.

    Attributes:
        layout: The block.
        norms: Its QK-norms that are trained.
        scaled: The names of the parameters that are scaled.
    """

    layout: AttentionLayout
    norms: set[NormLayout]
    scaled: list[str]


def _logits(view: StepView, layout: AttentionLayout, measured: Any, alone: bool) -> Tensor:
    """Return the largest logit of each head, as it was measured or as the weights allow."""
    # A tensor for several blocks may have as many entries as one has heads: it is not by heads.
    by_head = by_heads(measured, layout.heads) if alone else None
    if by_head is not None:
        return by_head
    if isinstance(measured, Tensor) and measured.numel() > 1 and view.once("shape"):
        logger.warning(
            "observe(%s=...) of shape %s has no dimension of the %d heads of %s: its largest value "
            "is taken for each; give (heads,) or (batch, heads) for each block, by name",
            SIGNAL,
            tuple(measured.shape),
            layout.heads,
            layout.name,
        )
    bound = logit_bound(layout, view.named(_names_of(layout)))
    if measured is None:
        return bound
    # One number for several heads: those that cannot be beyond the limit are left alone.
    largest = torch.as_tensor(measured).detach().to(bound).abs().amax()
    return torch.where(torch.isnan(bound), largest, torch.minimum(bound, largest))


def _clip(view: StepView, block: _Block, logits: Tensor, limit: float) -> list[Change]:
    layout = block.layout
    # Only heads beyond the limit itself: rounding must not repeat what was done.
    beyond = torch.isfinite(logits) & (logits > limit * (1 + ROOM))
    if not bool(beyond.any()):
        return []
    tensors = view.named(_names_of(layout))
    # What is not finite is left for the guard to see.
    beyond = beyond & _finite(layout, tensors).to(beyond.device)
    logits = torch.where(beyond, logits, torch.zeros_like(logits))
    worst = float(logits.max())
    if worst == 0:
        return []
    goal = min(aim(limit, tensors[name]) for name in block.scaled)
    if layout.q_norm is not None and layout.k_norm is not None:
        both = {layout.q_norm, layout.k_norm}
        # One norm for both, as some models have it, is scaled once and counts twice.
        share = (goal / worst) ** (0.5 if block.norms == both else 1.0)
        for norm in block.norms:
            _scale_norm(norm, tensors, share)
    else:
        q, k = qk_scales(logits, goal, kv_heads=layout.key_heads)
        _scale(query_rows(layout, tensors), q)
        _scale(key_rows(layout, tensors), k)
    return [Change(layout.query.weight, worst, limit)]


def _check_keys(view: StepView, signal: Any, names: Sequence[str]) -> None:
    """Warn of keys of the signal that are the name of no block."""
    if not isinstance(signal, Mapping) or not view.once("keys"):
        return
    lost = [key for key in signal if not any(is_about(str(key), name) for name in names)]
    if lost:
        logger.warning(
            "observe(%s=...) has %s, and there is no such attention block: the blocks are %s",
            SIGNAL,
            listed([repr(key) for key in lost], 4),
            listed(names, 8),
        )


def by_heads(measured: Any, heads: int) -> Tensor | None:
    """Return the largest magnitude of each head, ``(heads,)``; ``None`` if the shape has none.

    Args:
        measured: ``(heads,)``, ``(batch, heads)``, or all logits ``(batch, heads, n, n)``.
        heads: How many.
    """
    if not isinstance(measured, Tensor) or measured.dim() not in (1, 2, 4):
        return None
    axis = 1 if measured.dim() == 4 else measured.dim() - 1
    if measured.shape[axis] != heads:
        return None
    return measured.detach().abs().movedim(axis, 0).reshape(heads, -1).amax(dim=1).double()


def signal_of(signal: Any, block: str) -> Any:
    """Return the value of a signal for a block; ``None`` if there is none.

    Args:
        signal: A number or a tensor for all blocks, or a dict of these by the names of blocks or
            of modules around them. NaN counts as none.
        block: Name of the block.
    """
    if isinstance(signal, Mapping):
        keys = [key for key in signal if is_about(str(key), block)]
        return signal_of(signal[max(keys, key=len)], block) if keys else None
    unknown = signal is None or bool(torch.as_tensor(signal).isnan().all())
    return None if unknown else signal


def _layouts(given: object) -> tuple[AttentionLayout, ...]:
    single = isinstance(given, AttentionLayout)
    found = tuple(given) if isinstance(given, Iterable) and not single else (given,)
    for layout in found:
        if not isinstance(layout, AttentionLayout):
            raise ConfigError(
                f"layouts has {layout!r}, which is no stableopt.layouts.AttentionLayout: write one "
                "for each attention block"
            )
    return found


def _names_of(layout: AttentionLayout) -> list[str]:
    """Return the names of all parameters of a layout."""
    norms = [norm for norm in (layout.norm, layout.q_norm, layout.k_norm) if norm is not None]
    names = [name for side in (layout.query, layout.key) for name in (side.weight, side.bias)]
    names += [name for norm in norms for name in (norm.gain, norm.bias)]
    return list(dict.fromkeys(name for name in names if name is not None))


def _block(layout: AttentionLayout, site: Site) -> _Block | None:
    """Return a block; ``None`` if something that would be scaled is frozen."""
    norms = {
        norm
        for norm in (layout.q_norm, layout.k_norm)
        if norm is not None and norm.gain in site.trained
        if norm.bias is None or norm.bias in site.trained
    }
    if layout.q_norm is not None:
        parts = [p for norm in norms for p in (norm.gain, norm.bias)]
    else:
        parts = [p for side in (layout.query, layout.key) for p in (side.weight, side.bias)]
    scaled = list(dict.fromkeys(part for part in parts if part is not None))
    trained = bool(scaled) and {*scaled, layout.key.weight} <= site.trained.keys()
    return _Block(layout, norms, scaled) if trained else None


def _finite(layout: AttentionLayout, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the heads whose queries and keys are finite, ``(heads,)``."""
    query, key = (
        torch.stack([torch.isfinite(x).flatten(1).all(1) for x in rows if x is not None]).all(0)
        for rows in (query_rows(layout, tensors), key_rows(layout, tensors))
    )
    return query & key.repeat_interleave(layout.heads // layout.key_heads)


def _scale(rows: tuple[Tensor, Tensor | None], factors: Tensor) -> None:
    for tensor in rows:
        if tensor is not None:
            # Factors in float32 at least, so that a product is rounded once.
            wide = torch.promote_types(tensor.dtype, torch.float32)
            share = factors.to(tensor.device, wide)
            tensor.mul_(share[:, None, None] if tensor.dim() > 2 else share[:, None])


def _scale_norm(norm: NormLayout, tensors: Mapping[str, Tensor], factor: float) -> None:
    if norm.gain is not None:
        gain = tensors[norm.gain].detach()
        wide = gain.to(torch.promote_types(gain.dtype, torch.float32))
        gain.copy_((wide + norm.gain_offset) * factor - norm.gain_offset)
    if norm.bias is not None:
        tensors[norm.bias].detach().mul_(factor)
