"""``stableopt memory``: what a training takes, with the snapshots of the guard."""
