// θ = |Δ| > τ ? θ_ref + sign(Δ)(|Δ| - τ) : θ_ref to the byte; 12 bytes a weight in fp32.
#pragma once
#include "cpu/loops/tile.h"
#include "rules/soft_threshold.h"

namespace salun::cpu {
namespace {

template <class T>
void delta_as(const T* __restrict param, const T* __restrict anchor, int64_t n,
              float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = soft_delta(to_float(param[i]), to_float(anchor[i]));
}

template <class T>
void shrink_as(T* __restrict param, const T* __restrict anchor, int64_t n, float tau) {
  for (int64_t i = 0; i < n; ++i) {
    T reference = anchor[i], moved;
    float a = to_float(reference), delta = soft_delta(to_float(param[i]), a);
    from_float(soft_shrunk(delta, a, tau), moved);
    param[i] = magnitude(delta) > tau ? moved : reference;
  }
}

void delta(const void* param, const void* anchor, Dtype dtype, int64_t n, float* out) {
  auto run = [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    delta_as(static_cast<const T*>(param), static_cast<const T*>(anchor), n, out);
  };
  dtype == Dtype::f32   ? run(static_cast<float*>(nullptr))
  : dtype == Dtype::f16 ? run(static_cast<Half*>(nullptr))
                        : run(static_cast<BFloat16*>(nullptr));
}

void soft_threshold(void* param, const void* anchor, Dtype dtype, int64_t n, float tau) {
  auto run = [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    shrink_as(static_cast<T*>(param), static_cast<const T*>(anchor), n, tau);
  };
  dtype == Dtype::f32   ? run(static_cast<float*>(nullptr))
  : dtype == Dtype::f16 ? run(static_cast<Half*>(nullptr))
                        : run(static_cast<BFloat16*>(nullptr));
}

}  // namespace
}  // namespace salun::cpu
