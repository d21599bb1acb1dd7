"""Dynamic dilation unfold: ``F.unfold`` in which every output position reads its own dilation rate.

Importing the package loads the extension, which registers the operators as ``torch.ops.ddu.*``. Without an extension
that fits the installed torch it warns, with the command that fixes this, and only ``ddu_ops.reference`` works.
"""

import warnings

from ddu_ops import _extension, reference
from ddu_ops._version import __version__

if _extension.problem is None:
    import ddu_ops._vmap  # noqa: F401
    from ddu_ops import dcls, layers, offsets, receptive_field, recorder, viz
    from ddu_ops._decompositions import decompositions
    from ddu_ops._sum_modules import (
        DeformAggregate1d,
        DeformAggregate2d,
        DeformAggregate3d,
        DeformCorrelate1d,
        DeformCorrelate2d,
        DeformCorrelate3d,
        DynamicDilationAggregate1d,
        DynamicDilationAggregate2d,
        DynamicDilationAggregate3d,
        DynamicDilationCorrelate1d,
        DynamicDilationCorrelate2d,
        DynamicDilationCorrelate3d,
        DynamicDilationMaxPool1d,
        DynamicDilationMaxPool2d,
        DynamicDilationMaxPool3d,
    )
    from ddu_ops.conversion import adapt, to_fixed
    from ddu_ops.functional import (
        deform_conv1d,
        deform_conv2d,
        deform_conv3d,
        deform_unfold1d,
        deform_unfold2d,
        deform_unfold3d,
        dynamic_dilation_conv1d,
        dynamic_dilation_conv2d,
        dynamic_dilation_conv3d,
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
        DeformConv1d,
        DeformConv2d,
        DeformConv3d,
        DeformUnfold1d,
        DeformUnfold2d,
        DeformUnfold3d,
        DilationPredictor,
        DynamicDilationConv1d,
        DynamicDilationConv2d,
        DynamicDilationConv3d,
        DynamicDilationFold,
        DynamicDilationFold1d,
        DynamicDilationFold3d,
        DynamicDilationUnfold,
        DynamicDilationUnfold1d,
        DynamicDilationUnfold3d,
        OffsetPredictor,
        convert_mmcv,
        predictors,
    )
    from ddu_ops.sums import (
        deform_aggregate1d,
        deform_aggregate2d,
        deform_aggregate3d,
        deform_correlate1d,
        deform_correlate2d,
        deform_correlate3d,
        dynamic_dilation_aggregate1d,
        dynamic_dilation_aggregate2d,
        dynamic_dilation_aggregate3d,
        dynamic_dilation_correlate1d,
        dynamic_dilation_correlate2d,
        dynamic_dilation_correlate3d,
        dynamic_dilation_max_pool1d,
        dynamic_dilation_max_pool2d,
        dynamic_dilation_max_pool3d,
    )
else:
    warnings.warn(_extension.problem, RuntimeWarning, stacklevel=2)

    def __getattr__(name: str) -> object:
        if name in __all__:
            _extension.require()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DeformAggregate1d",
    "DeformAggregate2d",
    "DeformAggregate3d",
    "DeformConv1d",
    "DeformConv2d",
    "DeformConv3d",
    "DeformCorrelate1d",
    "DeformCorrelate2d",
    "DeformCorrelate3d",
    "DeformUnfold1d",
    "DeformUnfold2d",
    "DeformUnfold3d",
    "DilationPredictor",
    "DynamicDilationAggregate1d",
    "DynamicDilationAggregate2d",
    "DynamicDilationAggregate3d",
    "DynamicDilationConv1d",
    "DynamicDilationConv2d",
    "DynamicDilationConv3d",
    "DynamicDilationCorrelate1d",
    "DynamicDilationCorrelate2d",
    "DynamicDilationCorrelate3d",
    "DynamicDilationFold",
    "DynamicDilationFold1d",
    "DynamicDilationFold3d",
    "DynamicDilationMaxPool1d",
    "DynamicDilationMaxPool2d",
    "DynamicDilationMaxPool3d",
    "DynamicDilationUnfold",
    "DynamicDilationUnfold1d",
    "DynamicDilationUnfold3d",
    "OffsetPredictor",
    "__version__",
    "adapt",
    "convert_mmcv",
    "dcls",
    "decompositions",
    "deform_aggregate1d",
    "deform_aggregate2d",
    "deform_aggregate3d",
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
    "deform_correlate1d",
    "deform_correlate2d",
    "deform_correlate3d",
    "deform_unfold1d",
    "deform_unfold2d",
    "deform_unfold3d",
    "dynamic_dilation_aggregate1d",
    "dynamic_dilation_aggregate2d",
    "dynamic_dilation_aggregate3d",
    "dynamic_dilation_conv1d",
    "dynamic_dilation_conv2d",
    "dynamic_dilation_conv3d",
    "dynamic_dilation_correlate1d",
    "dynamic_dilation_correlate2d",
    "dynamic_dilation_correlate3d",
    "dynamic_dilation_fold",
    "dynamic_dilation_fold1d",
    "dynamic_dilation_fold3d",
    "dynamic_dilation_max_pool1d",
    "dynamic_dilation_max_pool2d",
    "dynamic_dilation_max_pool3d",
    "dynamic_dilation_unfold",
    "dynamic_dilation_unfold1d",
    "dynamic_dilation_unfold3d",
    "grid_size",
    "layers",
    "offsets",
    "predictors",
    "receptive_field",
    "recorder",
    "reference",
    "to_fixed",
    "to_offsets",
    "viz",
]
