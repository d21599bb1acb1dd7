"""Dynamic dilation unfold: ``F.unfold`` in which every output position reads its own dilation rate.

Importing the package loads the extension, which registers the operators as ``torch.ops.ddu.*``.
"""

# isort: off
import torch  # noqa: F401  # loads the libraries that the extension needs
import ddu_ops._C  # registers the operators, which what follows calls

# isort: on
import ddu_ops._flops
import ddu_ops._vmap  # noqa: F401
from ddu_ops import layers, receptive_field, reference, viz
from ddu_ops._decompositions import decompositions
from ddu_ops._version import __version__
from ddu_ops.functional import (
    dynamic_dilation_conv2d,
    dynamic_dilation_fold,
    dynamic_dilation_unfold,
    to_offsets,
)
from ddu_ops.modules import DilationPredictor, DynamicDilationConv2d, DynamicDilationFold, DynamicDilationUnfold

__all__ = [
    "DilationPredictor",
    "DynamicDilationConv2d",
    "DynamicDilationFold",
    "DynamicDilationUnfold",
    "__version__",
    "decompositions",
    "dynamic_dilation_conv2d",
    "dynamic_dilation_fold",
    "dynamic_dilation_unfold",
    "layers",
    "receptive_field",
    "reference",
    "to_offsets",
    "viz",
]
