// SPDX-License-Identifier: MIT
// What models call: unbatched arguments get a batch, a map with a batch size of 1 is expanded, and the operators do the
// rest. Composite, so every transform sees only these steps.

#include <torch/library.h>

#include "../args.h"
#include "../ops.h"
#include "../signatures.h"

namespace ddu {

namespace {

using at::Tensor;
using c10::SymIntArrayRef;

Tensor expand_map(const Tensor& dilation_map, const SymParams& params) {
  if (dilation_map.sym_size(0) == params.batch) {
    return dilation_map;
  }
  return dilation_map.expand_symint({params.batch, params.groups * params.rates, params.h.out_size, params.w.out_size});
}

Tensor dynamic_dilation_unfold(const Tensor& input, const Tensor& dilation_map, const Window& window) {
  const auto params = check_sample("dynamic_dilation_unfold", input, dilation_map, window, Caller::kModel);
  if (input.dim() == 3) {
    return unfold(input.unsqueeze(0), dilation_map.unsqueeze(0), window).squeeze(0);
  }
  return unfold(input, expand_map(dilation_map, params), window);
}

Tensor dynamic_dilation_fold(
    const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Window& window) {
  const auto params = check_splat("dynamic_dilation_fold", columns, output_size, dilation_map, window, Caller::kModel);
  if (columns.dim() == 2) {
    return fold(columns.unsqueeze(0), output_size, dilation_map.unsqueeze(0), window).squeeze(0);
  }
  return fold(columns, output_size, expand_map(dilation_map, params), window);
}

void register_composites(torch::Library& m) {
  m.impl("dynamic_dilation_unfold", TORCH_FN(Schema<&dynamic_dilation_unfold>::value));
  m.impl("dynamic_dilation_fold", TORCH_FN(Schema<&dynamic_dilation_fold>::value));
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CompositeImplicitAutograd, m) { register_composites(m); }

// Under vmap alone nothing else takes a composite operator apart, and it would be called once for every item.
TORCH_LIBRARY_IMPL(ddu, FuncTorchBatchedDecomposition, m) { register_composites(m); }

}  // namespace ddu
