#include "transform_logits.h"

namespace mach {

template <class Isa, class T>
void transform_logits(Transform transform, T* logits, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) logits[i] = transformed<Isa>(transform, logits[i]);
}

#define MACH_TRANSFORM_LOGITS(ISA, T) template void transform_logits<ISA, T>(Transform, T*, int64_t, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_TRANSFORM_LOGITS)

}  // namespace mach
