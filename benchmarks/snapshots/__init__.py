"""What snapshots and rollbacks cost."""
