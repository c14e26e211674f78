"""What sensors add to training."""
