// The emulator's own tests: small kernels whose results are known, and others that are wrong in one
// way each. `engine_cases NAME...` runs them; test_engine.py says what must come out.
#include <cuda_runtime.h>

#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr unsigned kAll = ~0u;
constexpr int kThreads = 128;

void expect(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("wrong result: ") + what);
}

// Exactly as long as asked for: AddressSanitizer guards both ends.
template <class T>
class Array {
 public:
  explicit Array(size_t size, T value = T()) : size_(size), data_(new T[size]) {
    for (size_t i = 0; i < size; ++i) data_[i] = value;
  }
  T* data() { return data_.get(); }
  T& operator[](size_t i) { return data_[i]; }
  size_t size() const { return size_; }

 private:
  size_t size_;
  std::unique_ptr<T[]> data_;
};

// --- warps ---------------------------------------------------------------------------------------

__global__ void vote_kernel(unsigned* out) {
  unsigned i = threadIdx.x, *mine = out + 12 * i;
  mine[0] = __ballot_sync(kAll, i % 3 == 0);
  mine[1] = unsigned(__any_sync(kAll, i == 5));
  mine[2] = unsigned(__all_sync(kAll, i < 40));
  mine[3] = __match_any_sync(kAll, int(i % 4));
  mine[4] = unsigned(__shfl_sync(kAll, int(i), 7));
  mine[5] = unsigned(__shfl_xor_sync(kAll, int(i), 1));
  mine[6] = unsigned(__shfl_up_sync(kAll, int(i), 2));
  mine[7] = unsigned(__shfl_down_sync(kAll, int(i), 30));
  mine[8] = unsigned(__shfl_down_sync(kAll, int(i), 3, 8));
  mine[9] = __reduce_add_sync(kAll, i);
  mine[10] = unsigned(__reduce_min_sync(kAll, int(i) - 20));
  mine[11] = __reduce_max_sync(kAll, i);
}

void warps() {
  Array<unsigned> out(12 * 64);
  LAUNCH(vote_kernel, 1, 64, nullptr, out.data());
  for (unsigned i = 0; i < 64; ++i) {
    unsigned *mine = &out[12 * i], lane = i % 32, first = i - lane, thirds = 0, quarters = 0;
    for (unsigned k = 0; k < 32; ++k) {
      thirds |= unsigned((first + k) % 3 == 0) << k;
      quarters |= unsigned(k % 4 == i % 4) << k;
    }
    expect(mine[0] == thirds, "ballot");
    expect(mine[1] == (first == 0), "any");
    expect(mine[2] == (first == 0), "all");
    expect(mine[3] == quarters, "match_any");
    expect(mine[4] == first + 7, "shfl");
    expect(mine[5] == (i ^ 1u), "shfl_xor");
    expect(mine[6] == (lane < 2 ? i : i - 2), "shfl_up");
    expect(mine[7] == (lane < 2 ? i + 30 : i), "shfl_down");
    expect(mine[8] == (lane % 8 < 5 ? i + 3 : i), "shfl_down in segments");
    expect(mine[9] == 32 * first + 496, "reduce_add");
    expect(int(mine[10]) == int(first) - 20, "reduce_min");
    expect(mine[11] == first + 31, "reduce_max");
  }
}

__global__ void bits_kernel(unsigned* out) {
  out[0] = unsigned(__popc(0xf0f0u)), out[1] = unsigned(__clz(0x00ffff)), out[2] = __clz(0);
  out[3] = unsigned(__ffs(0x50)), out[4] = unsigned(__ffs(0)), out[5] = __brev(0x6u);
  out[6] = unsigned(min(3, -4) + max(5, 6)), out[7] = __float_as_uint(__uint_as_float(7) * 2);
}

void bits() {
  Array<unsigned> out(8);
  LAUNCH(bits_kernel, 1, 1, nullptr, out.data());
  const unsigned expected[] = {8, 16, 32, 5, 0, 0x60000000, 2, 14};
  for (size_t i = 0; i < 8; ++i) expect(out[i] == expected[i], "functions of bits");
}

// Half a warp may meet alone.
__global__ void halves_kernel(unsigned* out) {
  unsigned lane = threadIdx.x % 32, mask = lane < 16 ? 0xffffu : 0xffff0000u;
  out[threadIdx.x] = lane < 16 ? __reduce_add_sync(mask, 1u) : __reduce_add_sync(mask, 2u);
}

void halves() {
  Array<unsigned> out(64);
  LAUNCH(halves_kernel, 1, 64, nullptr, out.data());
  for (unsigned i = 0; i < 64; ++i) expect(out[i] == (i % 32 < 16 ? 16u : 32u), "half a warp");
}

__global__ void ballot_of_some_kernel(const float* x, int n, unsigned* out) {
  int i = int(threadIdx.x);
  unsigned bits = 0;
  if (i < n) bits = __ballot_sync(kAll, x[i] > 0.0f);
  if (i % 32 == 0) out[i / 32] = bits;
}

void diverged_ballot() {
  Array<float> x(40);
  Array<unsigned> out(2);
  LAUNCH(ballot_of_some_kernel, 1, 64, nullptr, x.data(), 40, out.data());
}

__global__ void foreign_mask_kernel(unsigned* out) { out[threadIdx.x] = __ballot_sync(1u, 1); }

void foreign_mask() {
  Array<unsigned> out(32);
  LAUNCH(foreign_mask_kernel, 1, 32, nullptr, out.data());
}

// Both halves vote, but not in the same place.
__global__ void two_ballots_kernel(unsigned* out) {
  if (threadIdx.x < 16)
    out[threadIdx.x] = __ballot_sync(kAll, 1);
  else
    out[threadIdx.x] = __ballot_sync(kAll, 1);
}

void two_ballots() {
  Array<unsigned> out(32);
  LAUNCH(two_ballots_kernel, 1, 32, nullptr, out.data());
}

// --- blocks --------------------------------------------------------------------------------------

__global__ void indices_kernel(unsigned* out) {
  unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  unsigned size = blockDim.x * blockDim.y * blockDim.z;
  atomicAdd(out + block * size + thread, 1u + blockIdx.z + threadIdx.z);
}

void indices() {
  Array<unsigned> out(24 * 30);
  LAUNCH(indices_kernel, dim3(2, 3, 4), dim3(5, 3, 2), nullptr, out.data());
  for (unsigned i = 0; i < out.size(); ++i)
    expect(out[i] == 1 + i / 30 / 6 + i % 30 / 15, "each thread of each block once");
}

__global__ void barrier_votes_kernel(int* out) {
  int i = int(threadIdx.x);
  int count = __syncthreads_count(i % 3 == 0), any = __syncthreads_or(i == 7);
  int all = __syncthreads_and(i < 100);
  if (i == 0) out[0] = count, out[1] = any, out[2] = all;
}

void barrier_votes() {
  Array<int> out(3);
  LAUNCH(barrier_votes_kernel, 1, kThreads, nullptr, out.data());
  expect(out[0] == 43 && out[1] == 1 && out[2] == 0, "barriers that count");
}

// Faults: without a barrier a thread reads what its neighbour has not written yet.
template <bool Barriers>
__global__ void reverse_kernel(const int* in, int* out) {
  __shared__ int held[kThreads];
  held[threadIdx.x] = in[threadIdx.x];
  if constexpr (Barriers) __syncthreads();
  out[threadIdx.x] = held[kThreads - 1 - threadIdx.x];
}

template <bool Barriers>
void reverse() {
  Array<int> in(kThreads), out(kThreads);
  std::iota(in.data(), in.data() + kThreads, 0);
  LAUNCH((reverse_kernel<Barriers>), 1, kThreads, nullptr, in.data(), out.data());
  for (int i = 0; i < kThreads; ++i) expect(out[i] == kThreads - 1 - i, "reversed");
}

// __syncwarp() orders memory within a warp, a shuffle does not.
template <bool Sync>
__global__ void warp_exchange_kernel(int* out) {
  __shared__ int held[kThreads];
  held[threadIdx.x] = int(threadIdx.x);
  if constexpr (Sync)
    __syncwarp();
  else
    __shfl_sync(kAll, 0, 0);
  out[threadIdx.x] = held[threadIdx.x ^ 1u];
}

template <bool Sync>
void warp_exchange() {
  Array<int> out(kThreads);
  LAUNCH((warp_exchange_kernel<Sync>), 1, kThreads, nullptr, out.data());
  for (int i = 0; i < kThreads; ++i) expect(out[i] == (i ^ 1), "exchanged");
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 64)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void barrier_after_exit_kernel() {
  if (threadIdx.x >= 64) return;
  __syncthreads();
}

__global__ void barrier_and_ballot_kernel(unsigned* out) {
  if (threadIdx.x == 3)
    __syncthreads();
  else
    out[0] = __ballot_sync(kAll, 1);
}

void barrier_and_ballot() {
  Array<unsigned> out(1);
  LAUNCH(barrier_and_ballot_kernel, 1, 32, nullptr, out.data());
}

__global__ void unset_shared_kernel(unsigned* out) {
  __shared__ unsigned sums[32];
  atomicAdd(&sums[threadIdx.x % 32], 1u);
  __syncthreads();
  if (threadIdx.x < 32) out[threadIdx.x] = sums[threadIdx.x];
}

void unset_shared() {
  Array<unsigned> out(32);
  LAUNCH(unset_shared_kernel, 1, kThreads, nullptr, out.data());
  for (unsigned i = 0; i < 32; ++i) expect(out[i] == kThreads / 32, "sums from 0");
}

// --- memory --------------------------------------------------------------------------------------

__global__ void atomics_kernel(int* i, unsigned* u, unsigned long long* w, float* f) {
  int t = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&i[0], -1);
  atomicMin(&i[1], -t);
  atomicMax(&i[2], t);
  atomicOr(&u[0], 1u << (t % 32));
  atomicAnd(&u[1], ~(1u << (t % 31)));
  atomicAdd(&w[0], 1ull << 33);
  if (atomicCAS(&w[1], 0ull, 5ull) == 0) atomicExch(&u[2], 9u);
  atomicAdd(f, 0.5f);
}

void atomics() {
  Array<int> i(3);
  Array<unsigned> u(3);
  Array<unsigned long long> w(2);
  Array<float> f(1);
  u[1] = kAll;
  LAUNCH(atomics_kernel, 4, 64, nullptr, i.data(), u.data(), w.data(), f.data());
  expect(i[0] == -256 && i[1] == -255 && i[2] == 255, "int");
  expect(u[0] == kAll && u[1] == 1u << 31 && u[2] == 9, "unsigned");
  expect(w[0] == 256ull << 33 && w[1] == 5, "64 bit");
  expect(f[0] == 128.0f, "float");
}

// Adds up its tile, then waits for the block before: tickets say which one that is.
struct Chain {
  unsigned ticket, *ready;
  long *tile, *sum;
};

template <bool Fences, bool Waits>
__global__ void running_sum_kernel(const int* in, Chain* chain) {
  __shared__ unsigned ticket;
  __shared__ long total;
  if (threadIdx.x == 0) {
    ticket = atomicAdd(&chain->ticket, 1u);
    total = 0;
  }
  __syncthreads();
  unsigned tile = ticket;
  atomicAdd(&total, long(in[tile * blockDim.x + threadIdx.x]));
  __syncthreads();
  if (threadIdx.x > 0) return;
  if constexpr (Waits)
    while (tile > 0 && atomicAdd(&chain->ready[tile - 1], 0u) == 0) continue;
  if constexpr (Fences) __threadfence();
  chain->sum[tile] = total + (tile > 0 ? chain->sum[tile - 1] : 0);
  if constexpr (Fences) __threadfence();
  atomicExch(&chain->ready[tile], 1u);
}

template <bool Fences, bool Waits>
void running_sum() {
  constexpr int kTiles = 12;
  Array<int> in(kTiles * kThreads);
  std::iota(in.data(), in.data() + in.size(), 0);
  Array<unsigned> ready(kTiles);
  Array<long> sum(kTiles);
  Chain chain = {0, ready.data(), nullptr, sum.data()};
  LAUNCH((running_sum_kernel<Fences, Waits>), kTiles, kThreads, nullptr, in.data(), &chain);
  long n = kTiles * kThreads;
  expect(sum[kTiles - 1] == n * (n - 1) / 2, "running sum");
}

// A later ticket waits for an earlier one, as it must not: nobody comes.
__global__ void endless_kernel(unsigned* flag) {
  while (atomicAdd(flag, 0u) == 0) continue;
}

void endless() {
  Array<unsigned> flag(1);
  LAUNCH(endless_kernel, 1, 1, nullptr, flag.data());
}

// One thread waits for another of its own block.
__global__ void hand_over_kernel(unsigned* flag) {
  if (threadIdx.x == 0)
    while (atomicAdd(flag, 0u) == 0) continue;
  if (threadIdx.x == kThreads - 1) atomicExch(flag, 1u);
}

void hand_over() {
  Array<unsigned> flag(1);
  LAUNCH(hand_over_kernel, 1, kThreads, nullptr, flag.data());
  expect(flag[0] == 1, "handed over");
}

template <bool Atomic>
__global__ void block_sum_kernel(unsigned* sum) {
  if (threadIdx.x > 0) return;
  if constexpr (Atomic)
    atomicAdd(sum, 1u);
  else
    *sum += 1;
}

template <bool Atomic>
void block_sum() {
  Array<unsigned> sum(1);
  LAUNCH((block_sum_kernel<Atomic>), 8, 32, nullptr, sum.data());
  expect(sum[0] == 8, "sum of blocks");
}

// Each launch works on what the one before has left, with other threads.
__global__ void shift_kernel(const int* in, int* out) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
  out[i] = in[(i + 1) % n] + 1;
}

void launches_in_order() {
  Array<int> a(256), b(256);
  for (int round = 0; round < 20; ++round) {
    LAUNCH(shift_kernel, 2, 128, nullptr, a.data(), b.data());
    LAUNCH(shift_kernel, 4, 64, nullptr, b.data(), a.data());
  }
  for (size_t i = 0; i < a.size(); ++i) expect(a[i] == 40, "40 launches");
}

template <int Past>
__global__ void fill_kernel(int* out, int n) {
  for (int i = int(threadIdx.x); i < n + Past; i += int(blockDim.x)) out[i] = i;
}

template <int Past>
void fill() {
  Array<int> out(1000);
  LAUNCH((fill_kernel<Past>), 1, kThreads, nullptr, out.data(), 1000);
}

__global__ void past_shared_kernel(int* out, int past) {
  __shared__ int held[kThreads];
  held[int(threadIdx.x) + past] = int(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = held[threadIdx.x];
}

void past_shared() {
  Array<int> out(kThreads);
  LAUNCH(past_shared_kernel, 1, kThreads, nullptr, out.data(), 1);
}

__global__ void wide_kernel(const float* in, float* out) {
  float4 value = *reinterpret_cast<const float4*>(in + 4 * threadIdx.x);
  out[threadIdx.x] = value.x + value.y + value.z + value.w;
}

template <int Offset>
void wide() {
  Array<float4> memory(33, float4{1, 1, 1, 1});
  Array<float> out(32);
  auto* first = reinterpret_cast<float*>(memory.data()) + Offset;
  LAUNCH(wide_kernel, 1, 32, nullptr, first, out.data());
  for (size_t i = 0; i < 32; ++i) expect(out[i] == 4, "four at a time");
}

void many_threads() {
  Array<int> a(1 << 16), b(1 << 16);
  LAUNCH(shift_kernel, 1 << 8, 256, nullptr, a.data(), b.data());
  expect(b[7] == 1, "past the fibres that are kept");
}

const std::map<std::string, std::function<void()>> kCases = {
    {"warps", warps},
    {"bits", bits},
    {"halves", halves},
    {"indices", indices},
    {"barrier-votes", barrier_votes},
    {"reverse", reverse<true>},
    {"warp-exchange", warp_exchange<true>},
    {"atomics", atomics},
    {"running-sum", running_sum<true, true>},
    {"hand-over", hand_over},
    {"block-sum", block_sum<true>},
    {"launches-in-order", launches_in_order},
    {"fill", fill<0>},
    {"wide", wide<0>},
    {"many-threads", many_threads},
    // faults
    {"diverged-ballot", diverged_ballot},
    {"foreign-mask", foreign_mask},
    {"two-ballots", two_ballots},
    {"missing-barrier", reverse<false>},
    {"missing-syncwarp", warp_exchange<false>},
    {"divergent-barrier", [] { LAUNCH(divergent_barrier_kernel, 1, kThreads, nullptr); }},
    {"barrier-after-exit", [] { LAUNCH(barrier_after_exit_kernel, 1, kThreads, nullptr); }},
    {"barrier-and-ballot", barrier_and_ballot},
    {"unset-shared", unset_shared},
    {"missing-fence", running_sum<false, true>},
    {"missing-wait", running_sum<true, false>},
    {"endless", endless},
    {"race-between-blocks", block_sum<false>},
    {"past-the-end", fill<1>},
    {"past-shared", past_shared},
    {"misaligned", wide<3>},
    {"empty-grid", [] { LAUNCH(divergent_barrier_kernel, 0, kThreads, nullptr); }},
    {"large-block", [] { LAUNCH(divergent_barrier_kernel, 1, 1025, nullptr); }},
};

}  // namespace

int main(int count, char** names) try {
  for (int i = 1; i < count; ++i) kCases.at(names[i])();
  std::printf("%d held\n", count - 1);
  return 0;
} catch (const std::exception& error) {
  std::puts(error.what());
  return 1;
}
