#include "cardinality.h"

#include <cmath>

#include "memory.h"

namespace mach {

template <class I>
double count_features(const I* indices, int64_t begin, int64_t end) {
  int bits = 10;
  while ((int64_t(1) << bits) < 8 * (end - begin)) ++bits;
  Array<uint64_t> taken(int64_t(1) << (bits - 6));
  for (int64_t p = begin; p < end; ++p) {
    const uint64_t place = static_cast<uint64_t>(indices[p]) * 0x9E3779B97F4A7C15u >> (64 - bits);
    taken[place >> 6] |= uint64_t(1) << (place & 63);
  }
  int64_t count = 0;
  for (const uint64_t word : taken) count += __builtin_popcountll(word);
  const double places = std::ldexp(1.0, bits);
  return -places * std::log1p(-static_cast<double>(count) / places);
}

template double count_features(const int32_t*, int64_t, int64_t);
template double count_features(const int64_t*, int64_t, int64_t);

}  // namespace mach
