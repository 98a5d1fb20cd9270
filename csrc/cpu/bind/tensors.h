// What the bindings of the CPU operators share: results, row starts, and the registration of an operator. A
// binding only turns tensors into pointers and splits the work over threads. The loops are in cpu/<op>.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "../../arguments.h"
#include "../../check.h"
#include "../memory.h"

namespace mach {

// Bytes of an element of what operators make.
inline int64_t size_of(ScalarType type) {
  return type == ScalarType::UInt16 || type == ScalarType::BFloat16 ? 2
         : type == ScalarType::Int || type == ScalarType::Float     ? 4
                                                                    : 8;
}

// Not initialised, of at most 3 dimensions, on CPU. (torch::stable::new_empty goes through the dispatcher.)
inline Tensor allocate(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size,
                       std::optional<ScalarType> type = std::nullopt) {
  int64_t stride[3], count = 1, next = 1;
  for (size_t d = size.size(); d-- > 0; next = bytes_of(next, std::max<int64_t>(1, size[d]))) {
    stride[d] = next;
    count = bytes_of(count, size[d]);
  }
  const auto dtype =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type.value_or(like.scalar_type())));
  AtenTensorHandle handle;
  // Nothing else can be wrong with it.
  if (aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride, dtype,
                               aoti_torch_device_type_cpu(), 0, &handle) != AOTI_TORCH_SUCCESS)
    throw NotEnoughMemory(bytes_of(count, size_of(type.value_or(like.scalar_type()))), "a result");
  return Tensor(handle);
}

inline Tensor zeros(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size) {
  Tensor out = allocate(like, size);
  torch::stable::zero_(out);
  return out;
}

// What an operator can't do for want of memory is said with its name.
template <auto kOperator, class Name>
struct Guarded;
template <class Result, class... Arguments, Result (*kOperator)(Arguments...), class Name>
struct Guarded<kOperator, Name> {
  static Result call(Arguments... arguments) {
    try {
      return kOperator(std::forward<Arguments>(arguments)...);
    } catch (const NotEnoughMemory& error) {
      throw std::runtime_error(std::string(Name::text()) + ": " + error.what());
    } catch (const std::bad_alloc&) {  // of the standard library: nothing that grows with the input
      throw std::runtime_error(std::string(Name::text()) +
                               ": not enough memory: under 4096 bytes for scratch");
    }
  }
};

// indptr as int64, as it came.
inline Array<int64_t> given_indptr(const char* op, const Tensor& indptr) {
  MACH_CHECK(indptr.dim() == 1 && indptr.numel() >= 1, op, ": indptr must be 1-D with N + 1 entries");
  const Tensor dense = as_contiguous(indptr);
  Array<int64_t> given(dense.numel());
  dispatch_index(op, "indptr", dense, [&](auto index) {
    std::copy_n(pointer<decltype(index)>(dense), given.size(), given.begin());
  });
  return given;
}

// Forces it to be monotone and within [0, nnz], so that no kernel can leave its arrays whatever came in.
// Faulty input is reported by check_csr; here it only must not crash.
inline void make_safe(Array<int64_t>& indptr, int64_t nnz) {
  int64_t previous = 0;
  for (int64_t& start : indptr) previous = start = std::min(std::max(start, previous), nnz);
}

inline Array<int64_t> safe_indptr(const char* op, const Tensor& indptr, int64_t nnz) {
  Array<int64_t> safe = given_indptr(op, indptr);
  make_safe(safe, nnz);
  return safe;
}

}  // namespace mach

// In a STABLE_TORCH_LIBRARY_IMPL at the end of a binding: <name>_cpu as the operator <name>.
#define MACH_OPERATOR(NAME)                     \
  struct NAME##_name {                          \
    static const char* text() { return #NAME; } \
  };                                            \
  m.impl(#NAME, TORCH_BOX((&mach::Guarded<&mach::NAME##_cpu, NAME##_name>::call)))
