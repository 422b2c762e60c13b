"""One file per claim; results are kept as JSON in `benchmarks/results`."""
