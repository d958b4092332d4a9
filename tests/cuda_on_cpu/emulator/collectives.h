// Barriers, votes, shuffles and reductions, with the indices of a thread.
#pragma once
#include <cstring>

#include "engine.h"

#define threadIdx (::cuda_on_cpu::thread_index())
#define blockIdx (::cuda_on_cpu::block_index())
#define blockDim (::cuda_on_cpu::block_size())
#define gridDim (::cuda_on_cpu::grid_size())
#define warpSize (::cuda_on_cpu::kWarpSize)

namespace cuda_on_cpu {

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  return from_word<T>(meet_warp(Collective::shuffle, mask, to_word(value), source, site));
}

inline uint64_t vote(Collective kind, unsigned mask, int predicate, Site site) {
  return meet_warp(kind, mask, predicate != 0, 0, site);
}

// Widened with its sign, so that one comparison serves int and unsigned.
template <class T>
T reduce(Collective kind, unsigned mask, T value, Site site) {
  static_assert(sizeof(T) == 4);
  return T(meet_warp(kind, mask, uint64_t(int64_t(value)), 0, site));
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_SITE ::cuda_on_cpu::Site site = ::cuda_on_cpu::Site::current()

// --- the block ---------------------------------------------------------------------------------

inline void __syncthreads(CUDA_ON_CPU_SITE) {
  cuda_on_cpu::meet_block(cuda_on_cpu::Collective::barrier, false, site);
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_SITE) {
  using cuda_on_cpu::Collective;
  return int(cuda_on_cpu::meet_block(Collective::barrier_count, predicate != 0, site));
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_SITE) {
  using cuda_on_cpu::Collective;
  return int(cuda_on_cpu::meet_block(Collective::barrier_and, predicate != 0, site));
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_SITE) {
  using cuda_on_cpu::Collective;
  return int(cuda_on_cpu::meet_block(Collective::barrier_or, predicate != 0, site));
}

// --- the warp ----------------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_CPU_SITE) {
  cuda_on_cpu::meet_warp(cuda_on_cpu::Collective::sync, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return unsigned(cuda_on_cpu::vote(cuda_on_cpu::Collective::ballot, mask, predicate, site));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return int(cuda_on_cpu::vote(cuda_on_cpu::Collective::any, mask, predicate, site));
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return int(cuda_on_cpu::vote(cuda_on_cpu::Collective::all, mask, predicate, site));
}

// Lanes outside the segment of `width` lanes read their own value, as on a GPU.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, CUDA_ON_CPU_SITE) {
  int segment = cuda_on_cpu::lane() & ~(width - 1);
  return cuda_on_cpu::shuffle(mask, value, segment | (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, CUDA_ON_CPU_SITE) {
  int own = cuda_on_cpu::lane(), source = own ^ bits;
  return cuda_on_cpu::shuffle(mask, value, source > (own | (width - 1)) ? own : source, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = warpSize, CUDA_ON_CPU_SITE) {
  int own = cuda_on_cpu::lane(), source = own - delta;
  return cuda_on_cpu::shuffle(mask, value, source < (own & ~(width - 1)) ? own : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = warpSize, CUDA_ON_CPU_SITE) {
  int own = cuda_on_cpu::lane(), source = own + delta;
  return cuda_on_cpu::shuffle(mask, value, source > (own | (width - 1)) ? own : source, site);
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
  using cuda_on_cpu::Collective, cuda_on_cpu::to_word;
  return unsigned(cuda_on_cpu::meet_warp(Collective::match_any, mask, to_word(value), 0, site));
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Collective::reduce_add, mask, value, site);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Collective::reduce_min, mask, value, site);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Collective::reduce_max, mask, value, site);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Collective::reduce_and, mask, value, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Collective::reduce_or, mask, value, site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Collective::reduce_xor, mask, value, site);
}

inline void __threadfence() { cuda_on_cpu::fence(); }
