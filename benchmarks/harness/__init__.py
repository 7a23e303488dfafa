"""What the benchmarks are made of: steps, timing, arithmetic, and tables."""
