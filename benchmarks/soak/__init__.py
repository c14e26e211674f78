"""Long healthy training."""
