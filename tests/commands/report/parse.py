"""A page as tests look at it: elements, their text, and whether every tag is closed."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "link", "img", "input"}


class Page(HTMLParser):
    """Parses markup on construction.

    Attributes:
        elements: Of every element its tag, attributes and the tags that it lies in.
        text: All that is read, without styles.
        style: All styles.
    """

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.markup = markup
        self.elements = []
        self.text = ""
        self.style = ""
        self._open = []
        self.feed(markup)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data):
        if "style" in self._open:
            self.style += data
        else:
            self.text += f"{data}\n"

    def all(self, tag=None, **attributes):
        """Return the attributes of every element with that tag and those attributes."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [
            found
            for name, found, _ in self.elements
            if tag in (None, name) and all(found.get(key) == v for key, v in wanted.items())
        ]
