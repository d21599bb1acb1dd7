"""Dynamic dilation unfold: ``F.unfold`` in which every output position reads its own dilation rate.

Importing the package loads the extension, which registers the operators as ``torch.ops.ddu.*``. Without an extension
that fits the installed torch there is a warning with the command that mends it, and only ``ddu_ops.reference``.
"""

import warnings

from ddu_ops import _extension, reference
from ddu_ops._version import __version__

if _extension.problem is None:
    import ddu_ops._vmap  # noqa: F401
    from ddu_ops import dcls, layers, receptive_field, viz
    from ddu_ops._decompositions import decompositions
    from ddu_ops._when_imported import when_imported
    from ddu_ops.functional import (
        deform_unfold1d,
        deform_unfold2d,
        deform_unfold3d,
        dynamic_dilation_conv2d,
        dynamic_dilation_fold,
        dynamic_dilation_fold1d,
        dynamic_dilation_fold3d,
        dynamic_dilation_unfold,
        dynamic_dilation_unfold1d,
        dynamic_dilation_unfold3d,
        grid_size,
        to_offsets,
    )
    from ddu_ops.modules import (
        DeformUnfold1d,
        DeformUnfold2d,
        DeformUnfold3d,
        DilationPredictor,
        DynamicDilationConv2d,
        DynamicDilationFold,
        DynamicDilationFold1d,
        DynamicDilationFold3d,
        DynamicDilationUnfold,
        DynamicDilationUnfold1d,
        DynamicDilationUnfold3d,
    )

    # It imports triton, where that is, or warns that it is not: not everybody's matter.
    when_imported("torch.utils.flop_counter", then="ddu_ops._flops")
else:
    warnings.warn(_extension.problem, RuntimeWarning, stacklevel=2)

    def __getattr__(name: str) -> object:
        if name in __all__:
            _extension.require()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DeformUnfold1d",
    "DeformUnfold2d",
    "DeformUnfold3d",
    "DilationPredictor",
    "DynamicDilationConv2d",
    "DynamicDilationFold",
    "DynamicDilationFold1d",
    "DynamicDilationFold3d",
    "DynamicDilationUnfold",
    "DynamicDilationUnfold1d",
    "DynamicDilationUnfold3d",
    "__version__",
    "dcls",
    "decompositions",
    "deform_unfold1d",
    "deform_unfold2d",
    "deform_unfold3d",
    "dynamic_dilation_conv2d",
    "dynamic_dilation_fold",
    "dynamic_dilation_fold1d",
    "dynamic_dilation_fold3d",
    "dynamic_dilation_unfold",
    "dynamic_dilation_unfold1d",
    "dynamic_dilation_unfold3d",
    "grid_size",
    "layers",
    "receptive_field",
    "reference",
    "to_offsets",
    "viz",
]
