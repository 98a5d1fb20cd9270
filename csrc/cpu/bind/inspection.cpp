#include <optional>
#include <tuple>

#include "../check_csr.h"
#include "../isa.h"
#include "tensors.h"

namespace mach {
namespace {

std::tuple<int64_t, int64_t, int64_t> check_csr_cpu(const std::optional<Tensor>& values_,
                                                    const Tensor& indices_, const Tensor& indptr_,
                                                    int64_t num_columns) {
  const char* op = "check_csr";
  const Tensor indices = as_contiguous(indices_);
  std::optional<Tensor> values;
  if (values_.has_value()) {
    values = as_contiguous(*values_);
    check_shape(op, "values", *values, {indices.numel()});
  }
  const Array<int64_t> starts = given_indptr(op, indptr_);
  const int64_t N = static_cast<int64_t>(starts.size()) - 1;
  CsrCheck found;
  dispatch_index(op, "indices", indices, [&](auto index) {
    const auto* column = pointer<decltype(index)>(indices);
    const auto check = [&](const auto* value) {
      found = check_csr(value, column, indices.numel(), starts.data(), N, num_columns);
    };
    if (!values) return check(static_cast<const float*>(nullptr));
    dispatch_floating(op, "values", *values, [&](auto t) { check(pointer<decltype(t)>(*values)); });
  });
  return {static_cast<int64_t>(found.fault), found.row, found.position};
}

int64_t cpu_isa() { return static_cast<int64_t>(isa()); }

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(check_csr); }

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&mach::cpu_isa));
}
