// SPDX-License-Identifier: MIT
// Finds a dilation map again from what was read through it, by gradient descent.

#include <ddu_ops/ddu_ops.h>
#include <torch/torch.h>

#include <cstdio>

int main() {
  torch::manual_seed(0);
  // Smooth in both directions, so that the gradient by a rate says where to go.
  const auto line = torch::linspace(0, 12, 24);
  const auto image = (line.view({-1, 1}).sin() + 0.7 * line.cos()).expand({1, 1, 24, 24}).contiguous();
  const auto true_map = 1 + torch::linspace(0, 1.5, 24).expand({1, 1, 24, 24});
  const auto seen = ddu::unfold(image, /*kernel_size=*/3, true_map, /*stride=*/1, /*padding=*/1);

  auto map = torch::full({1, 1, 24, 24}, 1.5).requires_grad_();
  torch::optim::Adam optimizer({map}, torch::optim::AdamOptions(0.05));
  double first = 0;
  double last = 0;
  for (int step = 0; step < 100; ++step) {
    optimizer.zero_grad();
    const auto loss = (ddu::unfold(image, 3, map, 1, 1) - seen).square().mean();
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    first = step == 0 ? last : first;
  }
  const auto error = (map.detach() - true_map).abs().median().item<double>();
  std::printf("loss %.5f -> %.7f, half of the rates are within %.4f\n", first, last, error);
  return last < first / 50 && error < 0.01 ? 0 : 1;
}
