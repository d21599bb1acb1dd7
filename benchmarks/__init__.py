"""Times the operator beside what does similar work: ``python -m benchmarks --help``."""
