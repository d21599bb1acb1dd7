// SPDX-License-Identifier: MIT
// The Python module. Importing it loads the library, which registers the operators. It also reports how it was built,
// and what tests need to know about the kernels.

#include <Python.h>
#include <torch/version.h>

#include <string>

#include "backends/cpu/kernels.h"
#if defined(DDU_WITH_CUDA)
#include "backends/cuda/build.h"
#include "backends/cuda/launches.h"
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

PyObject* cuda_launches(PyObject*, PyObject*) {
  PyObject* const result = PyDict_New();
#if defined(DDU_WITH_CUDA)
  for (const auto* kernel = ddu::cuda::LaunchCount::first; result != nullptr && kernel != nullptr;
       kernel = kernel->next) {
    PyObject* const name =
        PyUnicode_FromStringAndSize(kernel->name.data(), static_cast<Py_ssize_t>(kernel->name.size()));
    PyObject* const count = PyLong_FromLongLong(kernel->launches.load(std::memory_order_relaxed));
    const bool set = name != nullptr && count != nullptr && PyDict_SetItem(result, name, count) == 0;
    Py_XDECREF(name);
    Py_XDECREF(count);
    if (!set) {
      Py_DECREF(result);
      return nullptr;
    }
  }
#endif
  return result;
}

PyObject* force_cuda_paths(PyObject*, PyObject* arguments) {
  int fast = 0;
  int wide = 0;
  if (!PyArg_ParseTuple(arguments, "pp", &fast, &wide)) {
    return nullptr;
  }
#if defined(DDU_WITH_CUDA)
  ddu::cuda::forced.fast = fast != 0;
  ddu::cuda::forced.wide = wide != 0;
#endif
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"build", &build, METH_NOARGS, nullptr},
    {"cuda_launches", &cuda_launches, METH_NOARGS, nullptr},
    {"force_cuda_paths", &force_cuda_paths, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" PyMODINIT_FUNC PyInit__C() {
  PyObject* const module = PyModule_Create(&definition);
#if defined(Py_GIL_DISABLED)
  PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);  // nothing here touches Python's state
#endif
  return module;
}
