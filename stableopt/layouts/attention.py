"""Where the queries and keys of an attention block are, by the names of its parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stableopt.errors import ConfigError, require_int, require_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Which rows of a weight make the queries, or the keys, of all heads.

    Head h has the rows ``start + h·stride … + head_dim``. A packed ``(three heads head_dim)``
    weight has its keys at ``start = heads·head_dim``; an interleaved ``(heads three head_dim)``
    one, as of GPT-NeoX, at ``start = head_dim`` with ``stride = 3·head_dim``.

    Attributes:
        weight: Name of the parameter, ``(out, in)``.
        start: Row where head 0 begins.
        stride: Rows from a head to the next; ``None`` for ``head_dim``.
        transposed: Whether the weight is stored as ``(in, out)``, like Conv1D of GPT-2.
        bias: Name of the bias; ``None`` if there is none.
        bias_start: Where head 0 begins in the bias; ``None`` for ``start``.

    Raises:
        ConfigError: A value is of the wrong kind or negative.

    Example:
        >>> Projection(weight="attn.qkv.weight", start=64).start
        64
    """

    weight: str
    start: int = 0
    stride: int | None = None
    transposed: bool = False
    bias: str | None = None
    bias_start: int | None = None

    def __post_init__(self) -> None:
        require_names(weight=self.weight)
        require_int("start", self.start, 0, "the row where the first head begins")
        if self.stride is not None:
            require_int("stride", self.stride, 1, "the rows from one head to the next")
        if self.bias is not None:
            require_names(bias=self.bias)
        if self.bias_start is not None:
            require_int("bias_start", self.bias_start, 0, "where the first head begins in the bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class NormLayout:
    """A normalisation ``g x̂ + β`` with ``‖x̂‖ ≤ √features``.

    Attributes:
        features: How many are normalised together.
        gain: Name of the parameter that g is made of; ``None`` for ones.
        bias: Name of β; ``None`` for zeros.
        gain_offset: What is added to that parameter: 1.0 for the RMSNorm of Gemma.
        centred: Whether the mean is subtracted, as LayerNorm does.

    Raises:
        ConfigError: A value is of the wrong kind.

    Example:
        >>> NormLayout(features=64, gain="norm.weight").gain_offset
        0.0
    """

    features: int
    gain: str | None = None
    bias: str | None = None
    gain_offset: float = 0.0
    centred: bool = False

    def __post_init__(self) -> None:
        require_int("features", self.features, 1, "how many features are normalised together")
        given = {"gain": self.gain, "bias": self.bias}
        require_names(**{field: name for field, name in given.items() if name is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayout:
    """One attention block, by the names that ``model.named_parameters()`` gives.

    Tensors are looked up by name when they are needed, because trainers swap Parameter objects.

    Attributes:
        name: Of the block.
        query: Where the queries are.
        key: Where the keys are.
        heads: Query heads.
        kv_heads: Key heads, which ``heads / kv_heads`` query heads share (GQA); ``None`` for as
            many as query heads.
        head_dim: Rows of one head.
        scale: The factor on q·k; ``None`` for ``1 / √head_dim``.
        norm: What normalises the input of both projections; ``None`` if that is not known: the
            logits have no bound from weights alone then, unless there is a QK-norm.
        dropout: Probability of the dropout between that norm and the projections.
        rope: Whether queries and keys are rotated by their positions. ``True`` is safe where
            it is not known.
        q_norm: The QK-norm of the queries, or ``None``.
        k_norm: The QK-norm of the keys, or ``None``.

    Raises:
        ConfigError: The numbers do not fit together.

    Example:
        >>> block = AttentionLayout(
        ...     name="attn",
        ...     query=Projection(weight="attn.qkv.weight"),
        ...     key=Projection(weight="attn.qkv.weight", start=64),
        ...     heads=4,
        ...     head_dim=16,
        ... )
        >>> block.logit_scale, block.key_heads
        (0.25, 4)
    """

    name: str
    query: Projection
    key: Projection
    heads: int
    head_dim: int
    kv_heads: int | None = None
    scale: float | None = None
    norm: NormLayout | None = None
    dropout: float = 0.0
    rope: bool = False
    q_norm: NormLayout | None = None
    k_norm: NormLayout | None = None

    def __post_init__(self) -> None:
        require_int("heads", self.heads, 1, "the query heads of the block")
        require_int("head_dim", self.head_dim, 1, "the rows of one head")
        if self.kv_heads is not None:
            require_int("kv_heads", self.kv_heads, 1, "the key heads of the block")
            if self.heads % self.kv_heads:
                raise ConfigError(
                    f"kv_heads={self.kv_heads!r} must divide heads={self.heads}: "
                    "each key head serves the same number of query heads"
                )
        if self.scale is not None:
            require_number("scale", self.scale, math.inf, "the factor on q·k")
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"dropout={self.dropout!r} must be a probability below 1: of the dropout "
                "between the norm and the projections"
            )
        for field, side in (("query", self.query), ("key", self.key)):
            if side.stride is not None and side.stride < self.head_dim:
                raise ConfigError(
                    f"{field}.stride={side.stride} must be at least head_dim={self.head_dim}: "
                    "heads do not share rows"
                )
        if (self.q_norm is None) != (self.k_norm is None):
            raise ConfigError(
                f"q_norm={self.q_norm!r} and k_norm={self.k_norm!r} must both be given: "
                "a QK-norm bounds the logits only where it normalises both"
            )

    @property
    def key_heads(self) -> int:
        """How many key heads there are."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def logit_scale(self) -> float:
        """The factor on q·k."""
        return self.head_dim**-0.5 if self.scale is None else self.scale


def require_names(**given: object) -> None:
    """Refuse what is no name of a parameter."""
    for field, value in given.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(
                f"{field}={value!r} must be the name of a parameter, as model.named_parameters() "
                "gives it"
            )
