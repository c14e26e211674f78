"""Time and memory on a GPU."""
