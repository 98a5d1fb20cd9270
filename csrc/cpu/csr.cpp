#include "csr.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <type_traits>

namespace mach {

namespace {

// Whether a row is ascending, in range and finite, as nearly all rows are: without branches, and faults are
// gathered in numbers as wide as what is compared, so that the compiler takes several at a time.
template <class T, class I>
bool is_plain_row(const T* values, const I* indices, int64_t begin, int64_t end, int64_t num_columns) {
  if (begin == end) return true;
  I unsorted = 0;
  for (int64_t p = begin + 1; p < end; ++p) unsorted |= indices[p - 1] < indices[p] ? 0 : 1;
  std::conditional_t<sizeof(T) == 4, int32_t, int64_t> infinite = 0;
  if (values != nullptr)
    for (int64_t p = begin; p < end; ++p)
      infinite |= std::abs(values[p]) <= std::numeric_limits<T>::max() ? 0 : 1;
  return unsorted == 0 && infinite == 0 && indices[begin] >= 0 &&
         static_cast<int64_t>(indices[end - 1]) < num_columns;
}

}  // namespace

template <class T, class I>
CsrCheck check_csr(const T* values, const I* indices, int64_t nnz, const int64_t* indptr, int64_t num_rows,
                   int64_t num_columns) {
  if (indptr[0] != 0) return {CsrFault::indptr_start, 0, 0};
  for (int64_t n = 0; n < num_rows; ++n)
    if (indptr[n + 1] < indptr[n]) return {CsrFault::indptr_decreasing, n, 0};
  if (indptr[num_rows] != nnz) return {CsrFault::indptr_end, num_rows, 0};

  Array<I> sorted;
  for (int64_t n = 0; n < num_rows; ++n) {
    if (is_plain_row(values, indices, indptr[n], indptr[n + 1], num_columns)) continue;
    bool ascending = true;
    for (int64_t p = indptr[n]; p < indptr[n + 1]; ++p) {
      if (indices[p] < 0 || static_cast<int64_t>(indices[p]) >= num_columns)
        return {CsrFault::index_range, n, p};
      if (values != nullptr && !std::isfinite(values[p])) return {CsrFault::not_finite, n, p};
      if (p > indptr[n] && indices[p] <= indices[p - 1]) ascending = false;
    }
    if (ascending) continue;
    sorted.assign(indices + indptr[n], indices + indptr[n + 1]);
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice == sorted.end()) continue;
    for (int64_t p = indptr[n]; p < indptr[n + 1]; ++p)
      if (indices[p] == *twice) return {CsrFault::duplicate, n, p};
  }
  return {};
}

namespace {

int bit_width(uint64_t x) {
  int bits = 0;
  while (bits < 64 && x >> bits != 0) ++bits;
  return bits;
}

}  // namespace

template <class I>
FeatureSort::FeatureSort(const I* indices, const int64_t* indptr, int64_t num_rows, int64_t num_features,
                         int64_t parts, const RunTasks& run)
    : parts_(parts), run_(run) {
  const int64_t begin = indptr[0], end = indptr[num_rows];
  const int feature_bits = num_features > 1 ? bit_width(num_features - 1) : 1;
  shift_ = bit_width(end);
  if (feature_bits + shift_ > 64) throw std::length_error("feature_order: too many features and non-zeros");
  if (num_rows > UINT32_MAX) throw std::length_error("feature_order: too many documents");
  const int passes = (feature_bits + 10) / 11, digit_bits = (feature_bits + passes - 1) / passes;
  const int64_t digits = int64_t(1) << digit_bits;

  Array<uint64_t> buffer(end - begin);
  sorted_.resize(end - begin);
  Array<int64_t> slots(parts * digits);  // [part, digit] count, then the next free slot
  for (int pass = 0; pass < passes; ++pass) {
    const int low = shift_ + pass * digit_bits;
    // f(key) of a part's entries, in their present order. The first pass reads the indices themselves.
    const auto each = [&](int64_t part, const auto& f) {
      if (pass > 0) {
        for (int64_t i = bound(part); i < bound(part + 1); ++i) f(buffer[i]);
        return;
      }
      const int64_t first = begin + (end - begin) * part / parts,
                    last = begin + (end - begin) * (part + 1) / parts;
      for (int64_t p = first; p < last; ++p)
        if (indices[p] >= 0 && static_cast<int64_t>(indices[p]) < num_features)
          f(static_cast<uint64_t>(indices[p]) << shift_ | static_cast<uint64_t>(p));
    };
    const auto digit = [&](uint64_t key) { return static_cast<int64_t>(key >> low) & (digits - 1); };
    run(parts, [&](int64_t part) {
      int64_t* count = slots.data() + part * digits;
      std::fill_n(count, digits, 0);
      each(part, [&](uint64_t key) { ++count[digit(key)]; });
    });
    int64_t total = 0;
    for (int64_t d = 0; d < digits; ++d)
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t count = slots[part * digits + d];
        slots[part * digits + d] = total;
        total += count;
      }
    E_ = total;
    run(parts, [&](int64_t part) {
      int64_t* next = slots.data() + part * digits;
      each(part, [&](uint64_t key) { sorted_[next[digit(key)]++] = key; });
    });
    if (pass + 1 < passes) sorted_.swap(buffer);
  }

  first_.assign(parts + 1, 0);
  run(parts, [&](int64_t part) {
    int64_t count = 0;
    for (int64_t e = bound(part); e < bound(part + 1); ++e)
      count += e == 0 || sorted_[e] >> shift_ != sorted_[e - 1] >> shift_;
    first_[part + 1] = count;
  });
  for (int64_t part = 0; part < parts; ++part) first_[part + 1] += first_[part];
}

void FeatureSort::write(const int64_t* indptr, int64_t num_rows, int64_t* features, int64_t* offsets,
                        int64_t* positions, int64_t* documents) const {
  Array<uint32_t> document(indptr[num_rows] - indptr[0]);  // of each position
  run_(parts_, [&](int64_t part) {
    for (int64_t n = num_rows * part / parts_; n < num_rows * (part + 1) / parts_; ++n)
      std::fill(document.begin() + (indptr[n] - indptr[0]), document.begin() + (indptr[n + 1] - indptr[0]),
                n);
  });
  const uint64_t position_mask = (uint64_t(1) << shift_) - 1;
  run_(parts_, [&](int64_t part) {
    int64_t u = first_[part];
    for (int64_t e = bound(part); e < bound(part + 1); ++e) {
      const uint64_t feature = sorted_[e] >> shift_;
      if (e == 0 || feature != sorted_[e - 1] >> shift_) {
        features[u] = static_cast<int64_t>(feature);
        offsets[u++] = e;
      }
      positions[e] = static_cast<int64_t>(sorted_[e] & position_mask);
      documents[e] = document[positions[e] - indptr[0]];
    }
  });
  offsets[num_features()] = E_;
}

#define MACH_CSR(I)                                                                                \
  template CsrCheck check_csr(const float*, const I*, int64_t, const int64_t*, int64_t, int64_t);  \
  template CsrCheck check_csr(const double*, const I*, int64_t, const int64_t*, int64_t, int64_t); \
  template FeatureSort::FeatureSort(const I*, const int64_t*, int64_t, int64_t, int64_t, const RunTasks&);
MACH_CSR(int32_t)
MACH_CSR(int64_t)

}  // namespace mach
