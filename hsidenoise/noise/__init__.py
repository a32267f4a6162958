"""The synthetic noise of the literature."""
