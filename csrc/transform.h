// What becomes of bucket logits in a prediction, for CPU and CUDA: nothing, sigmoid(z) or log sigmoid(z).
#pragma once

namespace mach {

enum class Transform { none, sigmoid, logsigmoid };

}  // namespace mach
