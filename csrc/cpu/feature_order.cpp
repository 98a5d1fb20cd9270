#include "feature_order.h"

#include <algorithm>
#include <stdexcept>

namespace mach {

namespace {

int bit_width(uint64_t x) {
  int bits = 0;
  while (bits < 64 && x >> bits != 0) ++bits;
  return bits;
}

}  // namespace

template <class I>
FeatureSort::FeatureSort(const I* indices, const int64_t* indptr, int64_t num_rows, int64_t num_features,
                         int64_t parts, const Tasks& run)
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

bool is_order_of(const FeatureOrder& order, int64_t nnz, int64_t N, int64_t D) {
  // Negative where x < 0 or x >= limit.
  const auto outside = [](int64_t x, int64_t limit) {
    return static_cast<int64_t>(static_cast<uint64_t>(x) |
                                (static_cast<uint64_t>(limit) - 1 - static_cast<uint64_t>(x)));
  };
  const FeatureOrder& v = order;
  int64_t wrong = v.offsets[0] == 0 && v.offsets[v.U] == v.E ? 0 : -1;
  for (int64_t u = 0; u < v.U; ++u)
    wrong |= outside(v.features[u], D) | (v.offsets[u + 1] - v.offsets[u]) | outside(v.offsets[u], v.E + 1);
  for (int64_t u = 1; u < v.U; ++u) wrong |= v.features[u] - v.features[u - 1] - 1;
  for (int64_t e = 0; e < v.E; ++e) wrong |= outside(v.positions[e], nnz) | outside(v.documents[e], N);
  return wrong >= 0;
}

template FeatureSort::FeatureSort(const int32_t*, const int64_t*, int64_t, int64_t, int64_t, const Tasks&);
template FeatureSort::FeatureSort(const int64_t*, const int64_t*, int64_t, int64_t, int64_t, const Tasks&);

}  // namespace mach
