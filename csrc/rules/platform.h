// How a rule is declared: inlined into the loop that uses it, on the host and on the device.
// `static` matters: each instruction-set variant must keep its own copy, never share one.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SALUN_RULE static __host__ __device__ __forceinline__
#else
#define SALUN_RULE static inline __attribute__((always_inline))
#endif
