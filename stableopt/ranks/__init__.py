"""Several ranks take one verdict: what they say to each other, and when."""
