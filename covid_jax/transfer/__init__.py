"""What a run takes over from pre-training, and what of it stays frozen."""
