"""``stableopt watch``: a run as it goes on, in a terminal."""
