"""What measures speed: `python -m benchmarks --help`."""
