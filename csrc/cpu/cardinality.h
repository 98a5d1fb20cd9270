// Estimates how many different features a batch has. Plain code, compiled once.
#pragma once

#include <cstdint>

namespace mach {

// Estimates how many different features indices [begin, end) name. It marks the features in a hash table
// without chains, counts the marked places, and corrects for the likely number of collisions (linear
// counting). The error is a few percent at most, and it is far cheaper than the sort about which it decides.
template <class I>
double count_features(const I* indices, int64_t begin, int64_t end);

}  // namespace mach
