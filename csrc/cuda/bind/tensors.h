// What the bindings of the CUDA operators share: results, row starts, checks, and the registration of an
// operator. A binding turns tensors into params structs and sets the device and the stream. Kernels are in
// cuda/<op>.cu.
#pragma once

#include <optional>
#include <tuple>

#include "../../arguments.h"
#include "../../check.h"
#include "../csr.cuh"
#include "../runtime.h"

namespace mach {

using torch::stable::new_zeros;

// Not initialised, on the device of `like`.
inline Tensor allocate(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size,
                       std::optional<ScalarType> type = std::nullopt) {
  Tensor out = torch::stable::new_empty(like, size, type.value_or(like.scalar_type()));
#ifdef MACH_SHIM
  if (out.numel() > 0) mach_shim::poison(out.mutable_data_ptr(), out.numel() * out.element_size());
#endif
  return out;
}

// Values and where they came from, equal values in their order.
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& t, bool descending) {
  using torch::stable::detail::from;
  StableIValue stack[]{from(t), from(std::optional<bool>(true)), from(int64_t{-1}), from(descending)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

inline IndexArray index_array(const char* op, const char* name, const Tensor& t) {
  IndexArray array{};
  dispatch_index(op, name, t, [&](auto index) { array = {t.const_data_ptr(), sizeof(index) == 8}; });
  return array;
}

inline Rows rows_of(const char* op, const char* name, const Tensor& indptr, int64_t nnz) {
  MACH_CHECK(indptr.dim() == 1 && indptr.size(0) >= 1, op, ": ", name, " must be 1-D with N + 1 entries");
  return {index_array(op, name, indptr), indptr.size(0) - 1, nnz};
}

// Kernels follow a pointer without asking where it leads.
inline void check_device(const char* op, const Tensor& like, std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors)
    MACH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), op,
               ": all tensors must be on one device");
}

}  // namespace mach

// In a MACH_CUDA_LIBRARY_IMPL at the end of a binding: <name>_cuda as the operator <name>.
#define MACH_CUDA_OPERATOR(NAME) m.impl(#NAME, TORCH_BOX(&mach::NAME##_cuda))
