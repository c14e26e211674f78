"""Keep attention logits under a bound by scaling the queries and keys of single heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stableopt.errors import ConfigError, require_int, require_number
from stableopt.functional.attention_logits import qk_scales
from stableopt.layouts import (
    AttentionLayout,
    check_layout,
    find_attention,
    key_rows,
    logit_bound,
    query_rows,
)
from stableopt.transforms.by_name import ByName
from stableopt.transforms.evidence import is_about
from stableopt.transforms.protocol import Change, Needs, Phase
from stableopt.transforms.rounding import ROOM, aim
from stableopt.transforms.selection import NothingSelectedError, Select, selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.layouts import NormLayout
    from stableopt.transforms.protocol import Moment, Site

SIGNAL = "max_attention_logit"
"""The signal of ``observe()`` with measured logits."""


@dataclass(frozen=True)
class QKClip:
    r"""Scale the query and key rows of a head whose attention logits may become too large.

    Both by :math:`\sqrt{\tau / m}`, with their biases, so that its logits shrink by τ/m: m is the
    largest logit if you measure it, ``opt.observe(max_attention_logit={block: per_head})``, else
    the largest one that the weights allow, which needs no forward pass:
    :math:`m = d\,\lVert W_q W_k^\top \rVert_2 / \sqrt{d_h}` with the gain of the norm that feeds
    them folded in. That bound is never violated, and in training two to six times above what
    occurs: it is held against ``slack`` times the limit. ``slack=1`` makes the limit a guarantee.

    Other heads stay as they are, bit for bit. Rotary embeddings are bounded by
    :math:`\lVert W_q \rVert \lVert W_k \rVert`; where heads share keys (GQA) the queries take all
    of it; behind a QK-norm it is the gains of that norm that are scaled. The state of the
    optimizer is left alone: it averages gradients, and the gradient of a scaled head changes by
    one factor, once.

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
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        require_number("limit", self.limit, 1e30, "the largest attention logit")
        require_number("slack", self.slack, 1e6, "how far above the limit the bound may be")
        if self.slack < 1:
            raise ConfigError(f"slack={self.slack!r} must be at least 1, which holds the limit")
        require_int("every", self.every, 1, "updates from one look at the weights to the next")
        if self.layouts is not None:
            object.__setattr__(self, "layouts", _layouts(self.layouts))
        object.__setattr__(self, "params", selection("params", self.params))

    def bind(self, site: Site) -> _QKClip:
        """Find the attention blocks of ``site``."""
        if self.layouts is None and site.model is None:
            raise NothingSelectedError(
                f"transforms has {self!r}, which needs to know where queries and keys are: give "
                "model=, or layouts= by parameter names"
            )
        given = self.layouts
        if given is None:
            given = () if site.model is None else find_attention(site.model)
        names = ByName(site)
        chosen = {target.name for target in site.targets}
        found = []
        for layout in given:
            check_layout(layout, names.parameters(_names_of(layout)))
            if layout.query.weight in chosen and layout.key.weight in names.trained:
                found.append(layout)
        if not found:
            raise NothingSelectedError(
                f"transforms has {self!r}, which finds no attention block that is trained: give "
                "layouts= by parameter names"
            )
        return _QKClip(self, found, names)


class _QKClip:
    def __init__(self, options: QKClip, layouts: Sequence[AttentionLayout], names: ByName) -> None:
        self._options = options
        self._layouts = layouts
        self._names = names
        weights = dict.fromkeys(
            n for block in layouts for n in (block.query.weight, block.key.weight)
        )
        self.targets = [names.trained[name] for name in weights]

    def act(self, moment: Moment) -> Sequence[Change]:
        """Scale in place; see :class:`QKClip`."""
        looks = moment.step % self._options.every == 0
        changes = []
        for layout in self._layouts:
            measured = told_about(moment.signals.get(SIGNAL), layout.name)
            if measured is None and not looks:
                continue
            limit = self._options.limit * (self._options.slack if measured is None else 1.0)
            logits = self._logits(moment, layout, measured)
            changes += self._clip(moment, layout, logits, limit)
        return changes

    def _logits(self, moment: Moment, layout: AttentionLayout, measured: Any) -> Tensor:
        """Return the largest logit of each head, as it was measured or as the weights allow."""
        if isinstance(measured, Tensor) and measured.numel() == layout.heads:
            return measured.detach().reshape(-1).to(torch.float64).abs()
        bound = logit_bound(layout, self._names.parameters(_names_of(layout), moment))
        if measured is None:
            return bound
        # One number for several heads: those that cannot have reached it are left alone.
        largest = torch.as_tensor(measured).detach().to(bound).abs().amax()
        return torch.where(torch.isnan(bound), largest, torch.minimum(bound, largest))

    def _clip(
        self, moment: Moment, layout: AttentionLayout, logits: Tensor, limit: float
    ) -> list[Change]:
        worst = float(torch.where(torch.isfinite(logits), logits, 0.0).max())
        if not worst > limit * (1 + ROOM):
            return []
        tensors = self._names.parameters(_names_of(layout), moment)
        goal = aim(limit, tensors[layout.query.weight])
        # Only heads beyond the limit itself: rounding must not repeat what was done.
        logits = torch.where(logits > limit * (1 + ROOM), logits, torch.zeros_like(logits))
        if layout.q_norm is not None and layout.k_norm is not None:
            # One norm for both, as some models have it, is scaled once and counts twice.
            for norm in {layout.q_norm, layout.k_norm}:
                _scale_norm(norm, tensors, (goal / worst) ** 0.5)
        else:
            q, k = qk_scales(logits, goal, kv_heads=layout.key_heads)
            _scale(query_rows(layout, tensors), q)
            _scale(key_rows(layout, tensors), k)
        return [Change(layout.query.weight, worst, limit)]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it remembers nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


def told_about(signal: Any, block: str) -> Any:
    """Return what a signal says about a block; ``None`` for nothing.

    Args:
        signal: A number or a tensor for all blocks, or a dict of these by the names of blocks or
            of modules around them.
        block: Name of the block.
    """
    if not isinstance(signal, Mapping):
        return signal
    keys = [key for key in signal if is_about(str(key), block)]
    return signal[max(keys, key=len)] if keys else None


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
    names = [side.weight for side in (layout.query, layout.key)]
    names += [side.bias for side in (layout.query, layout.key) if side.bias is not None]
    names += [name for norm in norms for name in (norm.gain, norm.bias) if name is not None]
    return list(dict.fromkeys(names))


def _scale(rows: tuple[Tensor, Tensor | None], factors: Tensor) -> None:
    weight, bias = rows
    share = factors.to(weight)
    weight.mul_(share[:, None, None])
    if bias is not None:
        bias.mul_(share[:, None].to(bias))


def _scale_norm(norm: NormLayout, tensors: Mapping[str, Tensor], factor: float) -> None:
    if norm.gain is not None:
        gain = tensors[norm.gain].detach()
        gain.add_(norm.gain_offset).mul_(factor).sub_(norm.gain_offset)
    if norm.bias is not None:
        tensors[norm.bias].detach().mul_(factor)
