"""Times the operator and its alternatives: ``python -m benchmarks --help``."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler has a lot to say otherwise
