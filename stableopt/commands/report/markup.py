"""HTML that cannot be written unescaped."""

from __future__ import annotations

from html import escape

from stableopt.runtime.words import printable

_VOID = frozenset({"br", "hr", "meta"})


class Html(str):
    """Markup: what :func:`el` does not escape again."""

    __slots__ = ()


def text(content: str) -> Html:
    """Return plain text as markup; control characters but line ends become visible.

    Example:
        >>> text("<script>&")
        '&lt;script&gt;&amp;'
    """
    return Html(escape("\n".join(map(printable, content.split("\n")))))


def el(name: str, /, *children: str | None, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: Of the tag.
        *children: Markup as it is, any other string escaped; ``None`` is left out.
        **attributes: ``class_`` stands for ``class``, any other underscore for a hyphen; ``None``
            is left out.

    Example:
        >>> el("p", "1 < 2", el("br"), class_="note", id=None)
        '<p class="note">1 &lt; 2<br></p>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: str | None) -> Html:
    """Return children side by side, escaped as in :func:`el`."""
    return Html("".join(c if isinstance(c, Html) else text(c) for c in children if c is not None))
