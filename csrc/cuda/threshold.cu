#include "cuda/threshold.cuh"

namespace salun::cuda {
namespace {

__global__ void begin_selection_kernel(Selection* selection, uint32_t key, uint64_t wanted) {
  *selection = {key, 0, wanted, ~uint64_t(0), 0};
}

// One block. Thread t owns eight digits, the highest first; a scan over the threads tells which of
// them holds the wanted rank.
__global__ void __launch_bounds__(kBlock)
    descend_kernel(Selection* selection, const unsigned long long* counts, int level, bool largest,
                   float* magnitude) {
  constexpr int kOwn = kHistogramBins / kBlock;
  __shared__ uint64_t sums[kBlock];
  const int thread = int(threadIdx.x), highest = kHistogramBins - 1 - thread * kOwn;
  const uint64_t wanted = selection->wanted;
  uint64_t own = 0;
  for (int i = 0; i < kOwn; ++i) own += counts[highest - i];
  sums[thread] = own;
  __syncthreads();
  for (int distance = 1; distance < kBlock; distance *= 2) {
    uint64_t before = thread >= distance ? sums[thread - distance] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  const uint64_t above = sums[thread] - own;
  if (above >= wanted || sums[thread] < wanted) return;
  uint64_t rank = wanted - above;
  int digit = highest;
  while (counts[digit] < rank) rank -= counts[digit--];
  selection->key = append_digit(selection->key, uint32_t(digit), level);
  selection->wanted = rank;
  selection->equal = counts[digit];
  if (level == 2) *magnitude = key_magnitude(selection->key, largest);
}

__global__ void store_kernel(float* to, float value) { *to = value; }

}  // namespace

void begin_selection(Workspace& workspace, Selection* selection, uint32_t key, int64_t wanted) {
  LAUNCH(begin_selection_kernel, 1, 1, stream_of(workspace), selection, key, uint64_t(wanted));
}

void descend(Workspace& workspace, Selection* selection, const unsigned long long* counts,
             int level, bool largest, float* magnitude) {
  LAUNCH(descend_kernel, 1, kBlock, stream_of(workspace), selection, counts, level, largest,
         magnitude);
}

void store(Workspace& workspace, float* to, float value) {
  LAUNCH(store_kernel, 1, 1, stream_of(workspace), to, value);
}

void refuse_nonfinite(Workspace& workspace, const Selection* selection) {
  cudaStream_t stream = stream_of(workspace);
  uint32_t nonfinite = 0;
  check(cudaMemcpyAsync(&nonfinite, &selection->nonfinite, sizeof nonfinite, cudaMemcpyDeviceToHost,
                        stream),
        "read-back");
  check(cudaStreamSynchronize(stream), "selection");
  if (nonfinite != 0) throw std::runtime_error("a tensor of the list holds NaN or infinity");
}

}  // namespace salun::cuda
