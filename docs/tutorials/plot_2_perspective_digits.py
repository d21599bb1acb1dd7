"""
Digits in perspective: does it help?
====================================

The task of the tutorial, as an experiment: networks that differ in their dilation rates alone, with as many parameters
to within a few per cent, learn from the same pictures. This page runs ``examples/perspective_digits.py`` in a small
configuration: one network of each kind, and few steps. It shows that the script works, not more; what came of five
networks of each kind, trained for longer, is in :doc:`/study`.
"""

import tempfile

import perspective_digits

folder = tempfile.TemporaryDirectory()
perspective_digits.main(
    [
        "--seeds",
        "1",
        "--steps",
        "40",
        "--pictures",
        "100",
        "--workers",
        "1",
        "--output",
        f"{folder.name}/perspective_digits.png",
    ]
)
