"""What is wrong with single tensors: weights, optimizer state and buffers."""
