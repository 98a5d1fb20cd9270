// transform_logits: what a merge takes in place of logits, their sigmoid or its logarithm, in place. The bits
// of an element depend on nothing but its logit, neither on its place nor on the instruction set.
#pragma once

#include <cstdint>

#include "../transform.h"
#include "isa.h"

namespace mach {

// Elements [begin, end).
template <class Isa, class T>
void transform_logits(Transform transform, T* logits, int64_t begin, int64_t end);

}  // namespace mach
