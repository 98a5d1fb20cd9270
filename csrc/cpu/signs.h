// signs: the step that a gradient of bounded components takes, as used over all features (FGSM): G [N, T] is
// overwritten by its signs, +1, -1, or 0 (also where it is NaN); with `nonnegative`, for features that may
// not fall, -1 becomes 0. A tile of T features at a time is all that a dense step holds, whatever D is.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

template <class T>
struct Signs {
  T* gradient;  // [N, T], rows stride apart
  int64_t stride, columns;
  bool nonnegative;
};

// counts [N]: entries of each row that are not 0.
template <class Isa, class T>
void signs(const Signs<T>& p, int64_t* counts, int64_t row_begin, int64_t row_end);

}  // namespace mach
