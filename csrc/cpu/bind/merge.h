// Turns the arguments of merge_scores and merge_topk into what their kernels take.
#pragma once

#include "../../arguments.h"
#include "../merge_scores.h"

namespace mach {

template <class T>
MergeScores<T> merge_params(const MergeArguments& a) {
  return {pointer<T>(a.scores),
          a.scores.stride(0),
          a.scores.stride(1),
          pointer<int32_t>(a.buckets),
          a.R(),
          a.B(),
          a.L(),
          a.merge};
}

}  // namespace mach
