"""The compiled part: importing it registers the operators."""

def build() -> dict[str, str | int]:
    """How it was compiled, and the instruction set that it has chosen here."""
