"""How soon trackers have an event, and what it costs."""
