"""The optimiser, the step, checkpoints and progress of one run."""
