// The words and types that CUDA C++ adds to C++, as far as the kernels of this project use them.
#pragma once
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

#if defined(__SANITIZE_ADDRESS__)
// With red zones around each array, which thread-local ones lack; blocks run one after another.
#define __shared__ static
#else
// Each block runs on one OS thread.
#define __shared__ static thread_local
#endif

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1)
      : x(width), y(height), z(depth) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};
