"""The demo: a small GPT, a fault in the middle of its training, and what becomes of it."""
