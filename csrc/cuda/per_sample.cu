// Σ_i |∇_W ℓ_i| of a convolution. A block makes a tile of one sample's gradient in registers, place
// by place through shared memory, adds its magnitude to sums in registers, and goes on to the next
// sample. Where there are few tiles the samples are shared among several blocks, whose sums a
// second kernel adds up in order: no atomics, so that the same launch gives the same bits.
#include <algorithm>

#include "cuda/launch.cuh"
#include "formats.h"
#include "rules/score.h"

namespace salun::cuda {
namespace {

constexpr int kSide = 64;  // of a tile: outputs by rows of the window
constexpr int kDepth = 8;  // places that are staged at a time
constexpr int kOwn = 4;    // a thread has 4 x 4 of the tile
constexpr int kThreadsAcross = kSide / kOwn;
constexpr int kPitch = kSide + kOwn;  // places lie in different banks, and stay aligned
constexpr int64_t kBlocksWanted = 512;
constexpr int64_t kMostPlaces = int64_t(1) << 31;

struct PerSample {
  WeightScores scores;
  Images grads, inputs;
  Window window;
  int64_t outputs, rows;            // of a group
  int64_t output_tiles, row_tiles;  // of a group
  int64_t shares, samples_each;     // of the batch

  __host__ __device__ int64_t tiles() const { return window.groups * output_tiles * row_tiles; }
};

struct alignas(16) Four {
  float value[kOwn];
};

__device__ __forceinline__ float number_at(const Images& images, int64_t at) {
  switch (images.dtype) {
    case Dtype::f16: return Float16::decode(static_cast<const uint16_t*>(images.data)[at]);
    case Dtype::bf16: return BFloat16::decode(static_cast<const uint16_t*>(images.data)[at]);
    default: return static_cast<const float*>(images.data)[at];
  }
}

// Where a row of the window begins in the inputs, before stride and padding.
struct Row {
  int64_t offset, y, x;
  bool exists;
};

// Of an output. 32 bits: a division of 64 would cost more than the products between two of them.
struct Place {
  uint32_t y, x;
  bool exists;

  __device__ Place(const Images& grads, uint32_t index)
      : y(index / uint32_t(grads.width)),
        x(index - y * uint32_t(grads.width)),
        exists(y < uint32_t(grads.height)) {}
};

class Tile {
 public:
  __device__ Tile(const PerSample& layer, int64_t index) : layer_(layer) {
    first_row_ = index % layer.row_tiles * kSide;
    first_output_ = index / layer.row_tiles % layer.output_tiles * kSide;
    group_ = index / (layer.row_tiles * layer.output_tiles);
  }

  __device__ Row row(int lane) const {
    int64_t r = first_row_ + lane, height = layer_.window.kernel[0],
            width = layer_.window.kernel[1];
    int64_t channel = group_ * layer_.scores.inputs + r / (height * width);
    return {channel * layer_.inputs.strides[1],
            r / width % height * layer_.window.dilation[0] - layer_.window.padding[0],
            r % width * layer_.window.dilation[1] - layer_.window.padding[1], r < layer_.rows};
  }

  __device__ float input(const Row& row, int64_t sample, const Place& place) const {
    const Images& images = layer_.inputs;
    int64_t y = row.y + place.y * layer_.window.stride[0];
    int64_t x = row.x + place.x * layer_.window.stride[1];
    bool inside =
        row.exists && place.exists && y >= 0 && y < images.height && x >= 0 && x < images.width;
    if (!inside) return 0.0f;
    return number_at(images, sample * images.strides[0] + row.offset + y * images.strides[2] +
                                 x * images.strides[3]);
  }

  __device__ float gradient(int lane, int64_t sample, const Place& place) const {
    const Images& images = layer_.grads;
    int64_t output = first_output_ + lane;
    if (output >= layer_.outputs || !place.exists) return 0.0f;
    return number_at(images, sample * images.strides[0] +
                                 (group_ * layer_.outputs + output) * images.strides[1] +
                                 place.y * images.strides[2] + place.x * images.strides[3]);
  }

 private:
  const PerSample& layer_;
  int64_t first_row_, first_output_, group_;
};

__global__ void __launch_bounds__(kBlock)
    per_sample_tiles(const __grid_constant__ PerSample layer, float* partial) {
  __shared__ Four grads[kDepth][kPitch / kOwn], inputs[kDepth][kPitch / kOwn];
  const Tile tile(layer, blockIdx.x);
  const int thread = int(threadIdx.x), across = thread % kThreadsAcross * kOwn,
            down = thread / kThreadsAcross * kOwn;
  // Neighbouring threads stage neighbouring places: two lanes of the tile each.
  constexpr int kLanesAtOnce = kBlock / kDepth;
  const int depth = thread % kDepth, lane = thread / kDepth;
  const Row rows[] = {tile.row(lane), tile.row(lane + kLanesAtOnce)};
  const uint32_t places = uint32_t(layer.grads.height * layer.grads.width);
  const int64_t begin = blockIdx.y * layer.samples_each;
  const int64_t end = begin + layer.samples_each < layer.grads.samples ? begin + layer.samples_each
                                                                       : layer.grads.samples;
  float sums[kOwn][kOwn] = {};
  for (int64_t sample = begin; sample < end; ++sample) {
    float products[kOwn][kOwn] = {};
    for (uint32_t first = 0; first < places; first += kDepth) {
      const Place place(layer.grads, first + depth);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = lane + half * kLanesAtOnce;
        grads[depth][at / kOwn].value[at % kOwn] = tile.gradient(at, sample, place);
        inputs[depth][at / kOwn].value[at % kOwn] = tile.input(rows[half], sample, place);
      }
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const Four g = grads[d][down / kOwn];
        const Four x = inputs[d][across / kOwn];
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
#pragma unroll
          for (int j = 0; j < kOwn; ++j)
            products[i][j] = fused(g.value[i], x.value[j], products[i][j]);
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
#pragma unroll
      for (int j = 0; j < kOwn; ++j) sums[i][j] += score_abs(products[i][j]);
  }
  float* mine = partial + (int64_t(blockIdx.y) * layer.tiles() + blockIdx.x) * kSide * kSide;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    Four four;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) four.value[j] = sums[i][j];
    *reinterpret_cast<Four*>(mine + (down + i) * kSide + across) = four;
  }
}

__global__ void __launch_bounds__(kBlock)
    per_sample_sum(const __grid_constant__ PerSample layer, const float* partial, float scale) {
  const int64_t numel = layer.scores.outputs * layer.rows;
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < numel; i += stride) {
    const int64_t row = i % layer.rows, output = i / layer.rows, inner = output % layer.outputs;
    const int64_t tile =
        (output / layer.outputs * layer.output_tiles + inner / kSide) * layer.row_tiles +
        row / kSide;
    const float* from = partial + tile * kSide * kSide + inner % kSide * kSide + row % kSide;
    float sum = 0.0f;
    for (int64_t share = 0; share < layer.shares; ++share)
      sum += from[share * layer.tiles() * kSide * kSide];
    const int64_t width = layer.window.kernel[1], area = layer.window.kernel[0] * width;
    const int64_t* strides = layer.scores.strides;
    float* score = layer.scores.data + output * strides[0] + row / area * strides[1] +
                   row / width % layer.window.kernel[0] * strides[2] + row % width * strides[3];
    *score += scale * sum;
  }
}

int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

}  // namespace

void per_sample(Workspace& workspace, const WeightScores& scores, const Images& grads,
                const Images& inputs, const Window& window, float scale) {
  int64_t rows = scores.inputs * window.kernel[0] * window.kernel[1];
  if (scores.outputs * rows == 0 || grads.samples * grads.height * grads.width == 0) return;
  if (grads.height * grads.width > kMostPlaces)
    throw std::runtime_error("salun_fast: per_sample_: more than 2^31 places in an output");
  PerSample layer = {scores, grads, inputs, window, scores.outputs / window.groups,
                     rows,   0,     0,      0,      0};
  layer.output_tiles = parts(layer.outputs, kSide);
  layer.row_tiles = parts(rows, kSide);
  int64_t wanted = std::clamp<int64_t>(kBlocksWanted / layer.tiles(), 1, grads.samples);
  layer.samples_each = parts(grads.samples, wanted);
  layer.shares = parts(grads.samples, layer.samples_each);
  auto* partial = scratch<float>(workspace, layer.shares * layer.tiles() * kSide * kSide);
  dim3 grid(unsigned(layer.tiles()), unsigned(layer.shares));
  LAUNCH(per_sample_tiles, grid, kBlock, stream_of(workspace), layer, partial);
  LAUNCH(per_sample_sum, grid_for(parts(scores.outputs * rows, kBlock)), kBlock,
         stream_of(workspace), layer, partial, scale);
}

}  // namespace salun::cuda
