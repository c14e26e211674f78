"""``stableopt compare``: several runs side by side."""
