// Stands in for CUDA's header of this name, see cuda_runtime.h.
#pragma once

#include "cuda_runtime.h"

#define MACH_SHIM_SITE mach_shim::Site site = {__builtin_FILE(), __builtin_LINE()}

// The last `zeros` bytes of the destination become 0 and are not read.
inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0,
                                    MACH_SHIM_SITE) {
  mach_shim::start_copy(to, from, size, zeros, site);
}
inline void __pipeline_commit() { mach_shim::commit_copies(); }
// CUDA keeps eight groups open at most.
inline void __pipeline_wait_prior(size_t groups, MACH_SHIM_SITE) {
  mach_shim::wait_for_copies(std::min<size_t>(groups, 8), site);
}

#undef MACH_SHIM_SITE
