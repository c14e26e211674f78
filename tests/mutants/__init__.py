"""Known ways to break stableopt, and the tests that notice each of them."""
