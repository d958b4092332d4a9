// Atomic operations. Relaxed, as on a GPU: they order nothing else, fences do.
#pragma once
#include <atomic>
#include <type_traits>

#include "engine.h"

namespace cuda_on_cpu {

template <class T>
using Same = std::type_identity_t<T>;

template <class T>
std::atomic_ref<T> atomic(T* address) {
  before_atomic(address);
  return std::atomic_ref<T>(*address);
}

template <class T, class Change>
T change(T* address, Change changed) {
  auto target = atomic(address);
  T old = target.load(std::memory_order_relaxed);
  while (!target.compare_exchange_weak(old, changed(old), std::memory_order_relaxed)) continue;
  return old;
}

}  // namespace cuda_on_cpu

template <class T>
T atomicAdd(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::atomic(address).fetch_add(value, std::memory_order_relaxed);
}
template <class T>
T atomicSub(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::atomic(address).fetch_sub(value, std::memory_order_relaxed);
}
template <class T>
T atomicAnd(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::atomic(address).fetch_and(value, std::memory_order_relaxed);
}
template <class T>
T atomicOr(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::atomic(address).fetch_or(value, std::memory_order_relaxed);
}
template <class T>
T atomicXor(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::atomic(address).fetch_xor(value, std::memory_order_relaxed);
}
template <class T>
T atomicExch(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::atomic(address).exchange(value, std::memory_order_relaxed);
}
template <class T>
T atomicCAS(T* address, cuda_on_cpu::Same<T> expected, cuda_on_cpu::Same<T> value) {
  auto target = cuda_on_cpu::atomic(address);
  target.compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}
template <class T>
T atomicMin(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::change(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::change(address, [=](T old) { return value > old ? value : old; });
}
