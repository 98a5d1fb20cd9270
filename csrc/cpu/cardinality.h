// Estimates how many different features a batch has. Plain code, compiled once.
#pragma once

#include <cstdint>

namespace mach {

// About how many different features indices [begin, end) name: of a hash table without chains, how many
// places are taken, and how many collisions that many make likely (linear counting). A few percent off at
// most, and far cheaper than the sort that it decides about.
template <class I>
double count_features(const I* indices, int64_t begin, int64_t end);

}  // namespace mach
