// The interface through which code without torch runs tasks on threads. parallel.h implements it.
#pragma once

#include <cstdint>
#include <functional>

namespace mach {

// Runs task(0) ... task(count - 1), each once, on as many threads as there are.
using Tasks = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

}  // namespace mach
