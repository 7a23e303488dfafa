"""Measurements, each a command, and the peers that they run beside."""
