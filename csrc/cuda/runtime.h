// What the bindings need of CUDA and of torch on CUDA: stream, device, errors, and the library to register
// in. With MACH_SHIM (tests/cuda_shim) the tensors are on the CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

namespace mach {

#ifdef MACH_SHIM
#define MACH_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(mach_ext_shim, CPU, m)

// With an operator's guard comes the stream that its work has to go to.
class DeviceGuard {
 public:
  explicit DeviceGuard(const torch::stable::Tensor&) {
    if (alive++ == 0) mach_shim::change_stream();
  }
  DeviceGuard(const DeviceGuard&) = delete;
  ~DeviceGuard() { --alive; }
  inline static thread_local int alive = 0;
};

inline cudaStream_t current_stream(const torch::stable::Tensor&) {
  STD_TORCH_CHECK(DeviceGuard::alive > 0, "cuda shim: a stream is asked for without a DeviceGuard");
  return mach_shim::current_stream();
}

inline void check_cuda(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error));
}
#else
#define MACH_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(mach_ext, CUDA, m)

// Makes the tensor's device current.
class DeviceGuard {
 public:
  explicit DeviceGuard(const torch::stable::Tensor& t) : guard_(t.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline cudaStream_t current_stream(const torch::stable::Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t error) { STD_CUDA_CHECK(error); }
#endif

}  // namespace mach
