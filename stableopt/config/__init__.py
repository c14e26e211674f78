"""What is wrapped, and the options of a wrapper: checked before training starts."""
