"""Where people already are: trainers and trackers, each an extra that is imported on demand."""
