"""The same operators through LibTorch's stable ABI: ``python -m benchmarks.stable_abi --help``."""
