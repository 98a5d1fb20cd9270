// Checks of tensors, and dispatch by dtype, shared by the CPU and the CUDA bindings. (arguments.h has the
// checks of each operator.) These checks guard invariants of the raw operators. Users see the messages of
// mach_ext/functional/, which checks first.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cpu/memory.h"

// The headers of torch 2.11 and 2.12 lack this macro. From 2.14 on, its error also contains PyTorch's
// message.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

// STD_TORCH_CHECK puts a function and a source file before the text; these come with the text alone.
#define MACH_CHECK(condition, ...)               \
  do {                                           \
    if (!(condition)) ::mach::fail(__VA_ARGS__); \
  } while (false)

namespace mach {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// torch::stable::contiguous looks the operator up by name and goes through the dispatcher. This takes half a
// microsecond, while a small batch takes only two in all.
inline Tensor as_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  if (t.is_cuda()) return torch::stable::contiguous(t);
  try {
    return torch::stable::contiguous(t);
  } catch (const std::exception&) {  // it doesn't say why; there is one reason on CPU
    throw NotEnoughMemory(bytes_of(t.numel(), t.element_size()), "a contiguous copy");
  }
}

template <class T>
const T* pointer(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* mutable_pointer(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline const char* name_of(ScalarType type) { return torch::headeronly::toString(type); }

inline void check_shape(const char* op, const char* name, const Tensor& t,
                        std::initializer_list<int64_t> shape) {
  bool equal = t.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (int64_t extent : shape) equal = equal && t.size(i++) == extent;
  std::string want, got;
  if (!equal) {
    for (int64_t extent : shape) want += (want.empty() ? "" : ", ") + std::to_string(extent);
    for (int64_t d = 0; d < t.dim(); ++d) got += (got.empty() ? "" : ", ") + std::to_string(t.size(d));
  }
  MACH_CHECK(equal, op, ": ", name, " must have shape [", want, "], got [", got, "]");
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType type) {
  MACH_CHECK(t.scalar_type() == type, op, ": ", name, " must be ", name_of(type), ", got ",
             name_of(t.scalar_type()));
}

// t, contiguous, of this shape and dtype.
inline Tensor checked(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape,
                      ScalarType type) {
  check_shape(op, name, t, shape);
  check_dtype(op, name, t, type);
  return as_contiguous(t);
}

// Rows that an operator changes where they lie, any distance apart.
inline void check_rows(const char* op, const char* name, const Tensor& t, const char* shape) {
  MACH_CHECK(t.dim() == 2 && (t.numel() == 0 || t.stride(1) == 1), op, ": ", name, " must be ", shape,
             " with contiguous rows");
}

// f(T()) with T = float or double, the element type of t.
template <class F>
void dispatch_floating(const char* op, const char* name, const Tensor& t, F&& f) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return f(float());
    case ScalarType::Double:
      return f(double());
    default:
      MACH_CHECK(false, op, ": ", name, " must be float32 or float64, got ", name_of(t.scalar_type()));
  }
}

// f(I()) with I = int32_t or int64_t, the element type of t.
template <class F>
void dispatch_index(const char* op, const char* name, const Tensor& t, F&& f) {
  switch (t.scalar_type()) {
    case ScalarType::Int:
      return f(int32_t());
    case ScalarType::Long:
      return f(int64_t());
    default:
      MACH_CHECK(false, op, ": ", name, " must be int32 or int64, got ", name_of(t.scalar_type()));
  }
}

}  // namespace mach
