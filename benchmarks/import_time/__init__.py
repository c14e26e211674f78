"""What stableopt adds to importing torch."""
