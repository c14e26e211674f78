"""HTML that cannot be written unescaped."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup, escape

from stableopt.runtime.words import printable


def text(content: object) -> Markup:
    """Return a value as markup: markup as it is, ``None`` as nothing, anything else escaped.

    Control characters but line ends become visible.

    Example:
        >>> text("<script>&")
        Markup('&lt;script&gt;&amp;')
    """
    if isinstance(content, Markup):
        return content
    lines = "" if content is None else str(content)
    return escape("\n".join(map(printable, lines.split("\n"))))


def el(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element with a closing tag.

    Args:
        name: Of the tag.
        *children: As in :func:`text`.
        **attributes: ``class_`` stands for ``class``, any other underscore for a hyphen; ``None``
            is left out.

    Example:
        >>> print(el("p", "1 < 2", el("b"), class_="note", id=None))
        <p class="note">1 &lt; 2<b></b></p>
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")  # noqa: S704 - escaped above


def join(*children: object) -> Markup:
    """Return children side by side, escaped as in :func:`text`; of a generator all that it has."""
    flat = (part for c in children for part in (c if isinstance(c, Iterator) else (c,)))
    return Markup("").join(map(text, flat))
