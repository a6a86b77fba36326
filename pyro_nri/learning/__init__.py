"""From scenes to modules."""
