"""A study: its grid of steps, where they run, and in which order."""
