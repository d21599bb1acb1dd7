// SPDX-License-Identifier: MIT
#pragma once

#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>
#include <utility>

namespace ddu {

// Node pointers are std::shared_ptr up to torch 2.12 and c10::intrusive_ptr after it.
using NodePtr = decltype(torch::autograd::Edge::function);

template <class N, class... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_same_v<NodePtr, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<N>(new N(std::forward<Args>(args)...), [](N* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<N>(std::forward<Args>(args)...);
  }
}

}  // namespace ddu
