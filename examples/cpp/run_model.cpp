// SPDX-License-Identifier: MIT
// Runs a model that export_model.py wrote, and compares it with what Python computed.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

// A tensor as torch.save writes it.
static at::Tensor read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return torch::pickle_load(bytes).toTensor();
}

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", arguments[0]);
    return 2;
  }
  const std::string folder = arguments[1];
  torch::inductor::AOTIModelPackageLoader model(folder + "/model.pt2");
  const auto output = model.run({read(folder + "/input.pt")}).at(0);
  const auto error = (output - read(folder + "/output.pt")).abs().max().item<double>();
  std::printf("output of %ld values, at most %.1e from that of Python\n", long(output.numel()), error);
  return error < 1e-5 ? 0 : 1;
}
