#include "sparse_optim.h"

namespace mach {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

}  // namespace

template <class Isa, class T>
void sparse_adam(const RowStep<T>& p, T* exp_avg, T* exp_avg_sq, T step_size, T beta1, T beta2, T eps,
                 int64_t begin, int64_t end) {
  for (int64_t u = begin; u < end; ++u) {
    const int64_t row = p.rows ? p.rows[u] : u;
    if (row < 0 || row >= p.P) continue;
    const T* __restrict g = p.gradient + u * p.M;
    T* __restrict x = p.parameter + row * p.M;
    T* __restrict m = exp_avg + row * p.M;
    T* __restrict v = exp_avg_sq + row * p.M;
    for (int64_t i = 0; i < p.M; ++i) {
      m[i] = beta1 * m[i] + (T(1) - beta1) * g[i];
      v[i] = beta2 * v[i] + (T(1) - beta2) * (g[i] * g[i]);
      x[i] -= step_size * m[i] / (square_root(v[i]) + eps);
    }
  }
}

template <class Isa, class T>
void sparse_adagrad(const RowStep<T>& p, T* sum, T lr, T eps, int64_t begin, int64_t end) {
  for (int64_t u = begin; u < end; ++u) {
    const int64_t row = p.rows ? p.rows[u] : u;
    if (row < 0 || row >= p.P) continue;
    const T* __restrict g = p.gradient + u * p.M;
    T* __restrict x = p.parameter + row * p.M;
    T* __restrict s = sum + row * p.M;
    for (int64_t i = 0; i < p.M; ++i) {
      s[i] += g[i] * g[i];
      x[i] -= lr * g[i] / (square_root(s[i]) + eps);
    }
  }
}

#define MACH_SPARSE_OPTIM(ISA, T)                                                             \
  template void sparse_adam<ISA, T>(const RowStep<T>&, T*, T*, T, T, T, T, int64_t, int64_t); \
  template void sparse_adagrad<ISA, T>(const RowStep<T>&, T*, T, T, int64_t, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_SPARSE_OPTIM)

}  // namespace mach
