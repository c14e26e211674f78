"""Have mkdocstrings read our docstrings: Google sections, with the roles of Sphinx in the text."""

import re

from griffe import Extension

RULES = (
    (r"^( *)Example:$", r"\1Examples:"),  # the section that griffe shows as code
    (r":\w+:`[^`<]*<~?([^`>]+)>`", r"`\1`"),
    (r":\w+:`~(?:[^`]*\.)?([^`.]+)`", r"`\1`"),
    (r":\w+:`([^`]+)`", r"`\1`"),
    (r"::$", r":"),
)


class ExampleSections(Extension):
    """Rewrite every docstring that is read."""

    def on_instance(self, *, obj, **_):
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = obj.docstring.value
            for pattern, instead in RULES:
                text = re.sub(pattern, instead, text, flags=re.MULTILINE)
            obj.docstring.value = text
