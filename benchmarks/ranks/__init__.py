"""What several ranks cost."""
