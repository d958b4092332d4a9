// How kernels are launched: sizes, errors, and the one macro that stands for <<<>>>. Kernels use
// static shared memory only, no inline PTX and no approximate intrinsics.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "ops.h"

#if defined(__CUDACC__)
#define LAUNCH(kernel, grid, block, stream, ...)       \
  do {                                                 \
    kernel<<<grid, block, 0, stream>>>(__VA_ARGS__);   \
    ::salun::cuda::check(cudaGetLastError(), #kernel); \
  } while (0)
#endif

namespace salun::cuda {

constexpr int kBlock = 256;  // threads
constexpr int kWarp = 32;
constexpr int kWarps = kBlock / kWarp;
constexpr uint32_t kAllLanes = ~uint32_t(0);

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::string remedy;
  if (error == cudaErrorNoKernelImageForDevice)
    remedy = "; this build has no code for this GPU: reinstall with CMAKE_CUDA_ARCHITECTURES set";
  if (error == cudaErrorInsufficientDriver)
    remedy =
        "; this build's CUDA runtime needs a newer driver: update it, or reinstall with the "
        "CUDA toolkit that torch was built with";
  throw std::runtime_error(std::string("salun_fast: ") + what + ": " + cudaGetErrorString(error) +
                           remedy + " (`salun-fast doctor` tells what was built)");
}

inline cudaStream_t stream_of(const Workspace& workspace) {
  return static_cast<cudaStream_t>(workspace.stream());
}

template <class T>
T* scratch(Workspace& workspace, int64_t count) {
  return static_cast<T*>(workspace.scratch(count * int64_t(sizeof(T))));
}

// Blocks for work that loops over chunks: as many as the device can hold, never more than chunks.
inline unsigned grid_for(int64_t chunks) {
  int device = 0, processors = 0, threads = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device");
  check(cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerMultiProcessor, device), "device");
  return unsigned(std::min<int64_t>(chunks, int64_t(processors) * std::max(1, threads / kBlock)));
}

// Blocks for one thread each.
inline unsigned blocks_for(int64_t threads) { return unsigned((threads + kBlock - 1) / kBlock); }

}  // namespace salun::cuda
