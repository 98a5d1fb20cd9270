#include "signs.h"

namespace mach {

template <class Isa, class T>
void signs(const Signs<T>& p, int64_t* counts, int64_t row_begin, int64_t row_end) {
  const T negative = p.nonnegative ? T(0) : T(1);
  for (int64_t n = row_begin; n < row_end; ++n) {
    T* __restrict g = p.gradient + n * p.stride;
    int64_t count = 0;
    for (int64_t begin = 0; begin < p.columns; begin += 1 << 20) {  // its count fits int32
      const int64_t end = begin + (1 << 20) < p.columns ? begin + (1 << 20) : p.columns;
      int32_t some = 0;
      for (int64_t i = begin; i < end; ++i) {
        const T up = g[i] > 0 ? T(1) : T(0), down = g[i] < 0 ? negative : T(0);
        g[i] = up - down;
        some += static_cast<int32_t>(up + down);
      }
      count += some;
    }
    counts[n] = count;
  }
}

#define MACH_SIGNS(ISA, T) template void signs<ISA, T>(const Signs<T>&, int64_t*, int64_t, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_SIGNS)

}  // namespace mach
