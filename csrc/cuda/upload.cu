#include "cuda/parcel.h"
#include "cuda/table.cuh"

namespace salun::cuda {
namespace {

// Kernel arguments hold 4 KB; 32,764 bytes from CUDA 12.1 on.
constexpr int64_t kSmall = 4096;
constexpr int64_t kLarge = CUDART_VERSION >= 12010 ? 32764 : kSmall;

template <int64_t Bytes>
__global__ void __launch_bounds__(kBlock)
    store_parcel(const __grid_constant__ Parcel<Bytes> parcel, Quad* to, int count) {
  int i = int(blockIdx.x * kBlock + threadIdx.x);
  if (i < count) to[i] = parcel.quads[i];
}

template <int64_t Bytes>
void send(cudaStream_t stream, const Quad* quads, int64_t count, Quad* to) {
  using Full = Parcel<Bytes>;
  in_parcels(count, Full::kQuads, [&](int64_t first, int64_t some) {
    Full parcel;
    std::memcpy(parcel.quads, quads + first, size_t(some) * sizeof(Quad));
    Quad* target = to + first;
    int size = int(some);
    LAUNCH((store_parcel<Bytes>), blocks_for(some), kBlock, stream, parcel, target, size);
  });
}

}  // namespace

void upload(Workspace& workspace, const void* data, int64_t bytes, void* to) {
  auto* quads = static_cast<const Quad*>(data);
  int64_t count = bytes / int64_t(sizeof(Quad));
  if (count <= Parcel<kSmall>::kQuads)
    send<kSmall>(stream_of(workspace), quads, count, static_cast<Quad*>(to));
  else
    send<kLarge>(stream_of(workspace), quads, count, static_cast<Quad*>(to));
}

}  // namespace salun::cuda
