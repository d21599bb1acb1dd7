// SPDX-License-Identifier: MIT
// The Python module: importing it loads the library, and that registers the operators. It can tell how it was built.

#include <Python.h>
#include <torch/version.h>

#include <string>

#include "backends/cpu/kernels.h"
#if defined(DDU_WITH_CUDA)
#include "backends/cuda/build.h"
#endif

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "another compiler";
#endif

PyObject* build(PyObject*, PyObject*) {
  std::string cuda;
#if defined(DDU_WITH_CUDA)
  cuda = ddu::cuda::build();
#endif
  return Py_BuildValue(
      "{s:s, s:l, s:s, s:s, s:s}", "compiler", kCompiler, "c++", static_cast<long>(__cplusplus), "torch", TORCH_VERSION,
      "cuda", cuda.c_str(), "cpu_capability", ddu::cpu::capability_name());
}

PyMethodDef methods[] = {{"build", &build, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" PyMODINIT_FUNC PyInit__C() {
  PyObject* const module = PyModule_Create(&definition);
#if defined(Py_GIL_DISABLED)
  PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);  // nothing here touches Python's state
#endif
  return module;
}
