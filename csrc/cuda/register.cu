// The CUDA kernels as torch ops: on the device and the current stream of the first tensor.
#include "cuda/launch.cuh"
#include "torch_ops.h"

// The emulation (tests/cuda_on_cpu) registers these same kernels under a key of its own.
#ifndef SALUN_CUDA_KEY
#define SALUN_CUDA_KEY CUDA
#endif

// In libtorch_cuda.so; torch declares it only where a CUDA toolkit's headers are at hand.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace salun::cuda {
namespace {

using DenseSpan = std::span<const Dense>;
using StridedSpan = std::span<const Strided>;
using WordsSpan = std::span<const Words>;
using StepSpan = std::span<float* const>;

// Makes a device the current one, for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = device != before_;
    if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Scratch memory comes from torch's caching allocator, which hands it out again on the same stream
// only: after the kernels that use it.
class TorchWorkspace final : public Workspace {
 public:
  explicit TorchWorkspace(const Tensor& like) : like_(like) {
    require(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream_) == 0, "stream",
            "torch knows no current CUDA stream");
  }

  void* stream() const override { return stream_; }

  void* scratch(int64_t bytes) override {
    bytes = std::max<int64_t>(bytes, 1);
    held_.push_back(torch::stable::new_empty(like_, {&bytes, 1}, ScalarType::Byte));
    return held_.back().data_ptr();
  }

 private:
  const Tensor& like_;
  void* stream_ = nullptr;
  Tensors held_;
};

// A number beside the tensors is read by the kernels; any other lies on the host, and is known now.
Scalar scalar_of(const Tensor& number, const Tensor& like, const char* role) {
  bool fp64 = is_fp64(number, role);
  if (number.device() == like.device()) return {0.0, number.data_ptr(), fp64};
  require(number.is_cpu(), role, "expected the parameters' device, or the CPU");
  return {number_of(number, role)};
}

Scalar scalar_or(const MaybeTensor& number, double otherwise, const Tensor& like,
                 const char* role) {
  return number ? scalar_of(*number, like, role) : Scalar{otherwise};
}

class CudaBackend {
 public:
  explicit CudaBackend(const Tensor& like)
      : like_(like), guard_(like.get_device_index()), workspace_(like) {}

  void accumulate(DenseSpan scores, DenseSpan grads, ScoreRule rule, bool zero_grads) {
    cuda::accumulate(workspace_, scores, grads, rule, zero_grads);
  }

  void select(StridedSpan scores, int64_t k, bool largest, bool allow_nonfinite, WordsSpan masks,
              float* threshold) {
    cuda::select(workspace_, scores, k, largest, allow_nonfinite, masks, threshold);
  }

  void select_histogram(StridedSpan scores, uint32_t prefix, int level, bool largest,
                        int64_t* counts) {
    cuda::select_histogram(workspace_, scores, prefix, level, largest, counts);
  }

  void select_pack(StridedSpan scores, uint32_t threshold, int64_t ties, bool largest,
                   WordsSpan masks) {
    cuda::select_pack(workspace_, scores, threshold, ties, largest, masks);
  }

  void masked_sgd(DenseSpan params, DenseSpan grads, DenseSpan buffers, StepSpan steps,
                  WordsSpan masks, Ranks ranks, const HalfPrecision& half,
                  const SgdOptions& options, const StepTensors& tensors) {
    cuda::masked_sgd(workspace_, params, grads, buffers, steps, masks, ranks, half, options,
                     scalars(tensors));
  }

  void masked_adam(DenseSpan params, DenseSpan grads, DenseSpan exp_avgs, DenseSpan exp_avg_sqs,
                   DenseSpan max_exp_avg_sqs, StepSpan steps, WordsSpan masks, Ranks ranks,
                   const HalfPrecision& half, const AdamOptions& options,
                   const StepTensors& tensors) {
    cuda::masked_adam(workspace_, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps,
                      masks, ranks, half, options, scalars(tensors));
  }

  void soft_threshold(DenseSpan params, DenseSpan anchors, int64_t k, float* tau) {
    cuda::soft_threshold(workspace_, params, anchors, k, tau);
  }

  void per_sample(const WeightScores& scores, const Images& grads, const Images& inputs,
                  const Window& window, float scale) {
    cuda::per_sample(workspace_, scores, grads, inputs, window, scale);
  }

 private:
  StepScalars scalars(const StepTensors& tensors) const {
    return {scalar_of(tensors.lr, like_, "lr"),
            scalar_or(tensors.grad_scale, 1.0, like_, "grad_scale"),
            scalar_or(tensors.found_inf, 0.0, like_, "found_inf")};
  }

  const Tensor& like_;
  DeviceGuard guard_;
  TorchWorkspace workspace_;
};

}  // namespace
}  // namespace salun::cuda

STABLE_TORCH_LIBRARY_IMPL(salun_fast, SALUN_CUDA_KEY, m) {
  salun::TorchOps<salun::cuda::CudaBackend>::add_to(m);
}
