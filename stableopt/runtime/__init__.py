"""Walking tensors, names and scalars: what the rooms above need of torch's runtime."""
