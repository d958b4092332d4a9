// Every kernel entry by name, as pointers and sizes. No torch types here or below: torch_stable.h
// turns tensor lists into these spans, so the kernels build and run without torch (sanitizers).
#pragma once
#include <cstdint>
#include <span>

#include "rules/adam.h"
#include "rules/sgd.h"

namespace salun {

enum class Dtype : uint8_t { f32, f16, bf16 };

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16};

static inline int64_t size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// A tensor walked in the order its elements lie in memory; it has no gaps.
struct Dense {
  void* data;  // [numel]
  int64_t numel;
  Dtype dtype;

  void* at(int64_t i) const { return static_cast<char*>(data) + i * size_of(dtype); }
};

// A tensor of any strides, walked in row-major order of its logical elements.
struct Strided {
  const void* data;
  int64_t numel;
  Dtype dtype;
  bool contiguous;
  std::span<const int64_t> sizes;    // [dim]
  std::span<const int64_t> strides;  // [dim], in elements
};

// Packed mask: element i is bit i % 32 of words[i / 32].
struct Words {
  uint32_t* data;  // [ceil(numel / 32)], or null where every weight moves
};

// How parameters of half precision take fp32 results: by way of a master copy, rounded to nearest,
// or stochastically (bf16 only, rules/rounding.h). fp32 parameters are exact either way.
struct HalfPrecision {
  std::span<float* const> masters;   // written; empty, or null where a parameter has none
  std::span<const int64_t> origins;  // flat index of each parameter's first element
  bool stochastic;
  int64_t seed;
};

enum class ScoreRule : int64_t { sum, abs, square };

// What a layer saw or what it is told of its output: one image, or one line of it, per sample.
struct Images {
  const void* data;
  Dtype dtype;
  int64_t samples, channels, height, width;
  int64_t strides[4];  // of the four, in elements
};

// A convolution in two dimensions; a linear layer over a sequence is one of a single point.
struct Window {
  int64_t kernel[2], stride[2], padding[2], dilation[2], groups;
};

// Scores of a weight [outputs, inputs / groups, height, width of the window].
struct WeightScores {
  float* data;
  int64_t outputs, inputs;
  int64_t strides[4];  // in elements
};

namespace cpu {

// scores[i] += g, |g| or g²; optionally g = 0.
void accumulate(std::span<const Dense> scores,  // fp32, written
                std::span<const Dense> grads,   // written where zero_grads
                ScoreRule rule, bool zero_grads);

// Masks of the k largest (or smallest) |score|, ties to the lowest flat index. Returns the k-th.
// Throws std::runtime_error where a score is NaN or infinite, unless allow_nonfinite.
float select(std::span<const Strided> scores, int64_t k, bool largest, bool allow_nonfinite,
             std::span<const Words> masks);  // written

// counts[digit] of the ordered keys that begin with prefix (rules/ordered_key.h).
void select_histogram(std::span<const Strided> scores, uint32_t prefix, int level, bool largest,
                      std::span<int64_t> counts);  // [2048], written

// Masks of the keys above threshold and of the first `ties` keys equal to it.
void select_pack(std::span<const Strided> scores, uint32_t threshold, int64_t ties, bool largest,
                 std::span<const Words> masks);  // written

// One SGD step on the weights whose bit is 1. Gradients are divided by grad_scale; 1 leaves them.
void masked_sgd(std::span<const Dense> params,  // written
                std::span<const Dense> grads,
                std::span<const Dense> momentum_buffers,  // fp32, written; empty without momentum
                std::span<float* const> steps,            // steps taken before; incremented
                std::span<const Words> masks, const HalfPrecision& half, const SgdOptions& options,
                double lr, float grad_scale);

// One Adam or AdamW step on the weights whose bit is 1.
void masked_adam(std::span<const Dense> params,  // written
                 std::span<const Dense> grads,
                 std::span<const Dense> exp_avgs,         // fp32, written
                 std::span<const Dense> exp_avg_sqs,      // fp32, written
                 std::span<const Dense> max_exp_avg_sqs,  // fp32, written; empty without amsgrad
                 std::span<float* const> steps,           // steps taken before; incremented
                 std::span<const Words> masks, const HalfPrecision& half,
                 const AdamOptions& options, double lr, float grad_scale);

// Δ = params - anchors shrinks by τ, the k-th smallest |Δ|. Returns τ; throws as select.
float soft_threshold(std::span<const Dense> params,  // written
                     std::span<const Dense> anchors, int64_t k);

// scores += scale Σ_i |∇_W ℓ_i|, the gradient of a convolution's weight taken sample by sample.
void per_sample(const WeightScores& scores,  // written
                const Images& grads,         // of the outputs
                const Images& inputs, const Window& window, float scale);

}  // namespace cpu

namespace cuda {

// Where the kernels of an op run, and what they need beside their arguments.
class Workspace {
 public:
  virtual ~Workspace() = default;
  virtual void* stream() const = 0;  // a cudaStream_t of the current device
  // Memory of that device, aligned for any access, that lives until the op's kernels have run.
  virtual void* scratch(int64_t bytes) = 0;
};

// A number known to the host, or one that lies on the device: read when the kernel runs, so that a
// step never waits for it.
struct Scalar {
  double value;                  // where device is null
  const void* device = nullptr;  // fp32 or fp64
  bool fp64 = false;
};

struct StepScalars {
  Scalar lr, grad_scale, found_inf;  // nothing at all changes where found_inf is not 0
};

// The same ops as above, on pointers of the device. They return when the kernels are queued.
void accumulate(Workspace& workspace, std::span<const Dense> scores, std::span<const Dense> grads,
                ScoreRule rule, bool zero_grads);

// Waits for the device only to refuse scores that are NaN or infinite, unless allow_nonfinite.
void select(Workspace& workspace, std::span<const Strided> scores, int64_t k, bool largest,
            bool allow_nonfinite, std::span<const Words> masks,
            float* threshold);  // on the device; written

void select_histogram(Workspace& workspace, std::span<const Strided> scores, uint32_t prefix,
                      int level, bool largest,
                      int64_t* counts);  // [2048] on the device; written

void select_pack(Workspace& workspace, std::span<const Strided> scores, uint32_t threshold,
                 int64_t ties, bool largest, std::span<const Words> masks);

void masked_sgd(Workspace& workspace, std::span<const Dense> params, std::span<const Dense> grads,
                std::span<const Dense> momentum_buffers, std::span<float* const> steps,
                std::span<const Words> masks, const HalfPrecision& half, const SgdOptions& options,
                const StepScalars& scalars);

void masked_adam(Workspace& workspace, std::span<const Dense> params, std::span<const Dense> grads,
                 std::span<const Dense> exp_avgs, std::span<const Dense> exp_avg_sqs,
                 std::span<const Dense> max_exp_avg_sqs, std::span<float* const> steps,
                 std::span<const Words> masks, const HalfPrecision& half,
                 const AdamOptions& options, const StepScalars& scalars);

// Waits for the device to refuse NaN and infinity; nothing is written then.
void soft_threshold(Workspace& workspace, std::span<const Dense> params,
                    std::span<const Dense> anchors, int64_t k,
                    float* tau);  // on the device; written

}  // namespace cuda
}  // namespace salun
