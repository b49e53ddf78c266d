"""What a run takes, and what it made: benchmarks."""
