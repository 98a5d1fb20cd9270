#include "../bucket_forward_int8.h"

#include <optional>

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

// Calls f with the tag of the kernel.
template <class F>
void with_int8_isa(F&& f) {
#if defined(__x86_64__)
  if (has_vnni()) return f(Avx512Vnni{});
#endif
  with_isa<float>(f);
}

Tensor bucket_forward_int8_cpu(const Tensor& hidden_, const Tensor& weight_, const Tensor& scale_,
                               const std::optional<Tensor>& bias_) {
  const char* op = "bucket_forward_int8";
  constexpr int64_t kBlock = 256;  // documents whose words are held at a time
  MACH_CHECK(weight_.dim() == 5, op, ": weight must be [R, tiles, words, 64, 4]");
  check_dtype(op, "weight", weight_, ScalarType::Char);
  check_dtype(op, "hidden", hidden_, ScalarType::Float);
  check_dtype(op, "scale", scale_, ScalarType::Float);
  MACH_CHECK(scale_.dim() == 2, op, ": scale must be [R, B]");
  const int64_t R = weight_.size(0), tiles = weight_.size(1), num_words = weight_.size(2);
  const int64_t B = scale_.size(1), H = hidden_.dim() ? hidden_.size(-1) : 0;
  check_shape(op, "scale", scale_, {R, B});
  check_shape(op, "weight", weight_,
              {R, (B + kTileBuckets - 1) / kTileBuckets, (H + kWordUnits - 1) / kWordUnits, kTileBuckets,
               kWordUnits});
  MACH_CHECK(H <= 65536, op, ": H must be at most 65,536, got ", H);  // so that sums fit 32 bits
  const bool shared = hidden_.dim() == 2;
  const int64_t N = hidden_.size(0);
  if (!shared) check_shape(op, "hidden", hidden_, {N, R, H});
  if (bias_) {
    check_shape(op, "bias", *bias_, {R, B});
    check_dtype(op, "bias", *bias_, ScalarType::Float);
  }
  const Tensor hidden = as_contiguous(hidden_), weight = as_contiguous(weight_),
               scale = as_contiguous(scale_);
  const std::optional<Tensor> bias = bias_ ? std::optional(as_contiguous(*bias_)) : std::nullopt;
  Tensor logits = allocate(hidden, {N, R, B});
  if (logits.numel() == 0) return logits;

  const BucketForwardInt8 params{pointer<int8_t>(weight),
                                 pointer<float>(scale),
                                 bias ? pointer<float>(*bias) : nullptr,
                                 R,
                                 B,
                                 tiles,
                                 num_words};
  const int64_t encoders = shared ? 1 : R, block = std::min(N, kBlock), rows = encoders * block;
  Array<uint32_t> units(rows * num_words);
  Array<int32_t> at(rows * num_words);
  Array<int64_t> count(rows);
  Array<float> scales(rows);
  for (int64_t start = 0; start < N; start += block) {
    const HiddenWords words{units.data(),  at.data(), count.data(),
                            scales.data(), encoders,  std::min(block, N - start)};
    with_int8_isa([&](auto isa) {
      using Isa = decltype(isa);
      parallel_ranges(words.documents * encoders, words.documents * encoders * H,
                      [&](int64_t i, int64_t end) {
                        for (; i < end; ++i)
                          round_hidden<Isa>(pointer<float>(hidden) + (start * encoders + i) * H, H, words,
                                            i % encoders * words.documents + i / encoders, num_words);
                      });
      parallel_ranges(R * tiles, words.documents * R * tiles * num_words * kTileBuckets,
                      [&](int64_t begin, int64_t end) {
                        bucket_forward_int8<Isa>(params, words,
                                                 mutable_pointer<float>(logits) + start * R * B, begin, end);
                      });
    });
  }
  return logits;
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(bucket_forward_int8); }
