"""What is wrong with a single step: its loss, its gradients, its update."""
