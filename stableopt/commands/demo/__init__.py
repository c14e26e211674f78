"""The demo: a small GPT, a fault in the middle of its training, and how it ends."""
