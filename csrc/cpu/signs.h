// signs: turns gradients into steps of components that are bounded each (FGSM over all features). G [N, T] is
// overwritten by its signs: +1, -1, or 0, which also stands for NaN. With `nonnegative`, for features that
// must not fall, -1 becomes 0. A dense step holds only a tile of T features at a time, whatever D is.
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
