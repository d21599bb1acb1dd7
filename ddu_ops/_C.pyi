"""The compiled part: importing it registers the operators."""

def build() -> dict[str, str | int]:
    """How it was compiled, and the instruction set that it has chosen here."""

def cuda_launches() -> dict[str, int]:
    """How often each of the CUDA kernels was launched in this process. Empty in a build without them."""

def force_cuda_paths(fast: bool, wide: bool, /) -> None:
    """For tests: whether calls take the fast kernels wherever they can, and offsets of 64 bits."""
