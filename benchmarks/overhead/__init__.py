"""What a training step costs with stableopt and with a peer."""
