"""The quiet zoo: small trainings that are healthy but unusual, bare and wrapped."""
