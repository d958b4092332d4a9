// The one file that knows torch, through its stable ABI (target 2.10): lists of tensors become the
// spans of ops.h, and what would let a kernel touch foreign memory is refused. Worded checks, with
// parameter names, live in salun_fast/ops.py; these are the last line of defence.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops.h"
#include "rules/bits.h"

namespace salun {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

inline void require(bool condition, const std::string& role, const char* what) {
  if (!condition) throw std::runtime_error("salun_fast: " + role + ": " + what);
}

inline Dtype dtype_of(const Tensor& tensor, const std::string& role) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Half: return Dtype::f16;
    case ScalarType::BFloat16: return Dtype::bf16;
    default: require(false, role, "expected float32, float16 or bfloat16"); return Dtype::f32;
  }
}

// Gapless, in any order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, size
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (tensor.size(d) != 1) axes.emplace_back(tensor.stride(d), tensor.size(d));
  std::sort(axes.begin(), axes.end());
  int64_t expected = 1;
  for (auto [stride, size] : axes) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d) || (a.size(d) != 1 && a.stride(d) != b.stride(d))) return false;
  return true;
}

// Kernels take pointers on trust: one of another device would be fatal.
inline void require_same_device(const Tensor& tensor, const Tensor& first,
                                const std::string& role) {
  require(tensor.device() == first.device(), role, "a tensor is on another device");
}

inline std::vector<Dense> dense_list(const Tensors& tensors, const std::string& role) {
  std::vector<Dense> list;
  for (const Tensor& tensor : tensors) {
    require(tensor.numel() == 0 || is_dense(tensor), role, "a tensor has gaps in memory");
    list.push_back({tensor.data_ptr(), tensor.numel(), dtype_of(tensor, role)});
  }
  return list;
}

// A list that is walked beside `like`, element by element in memory order.
inline std::vector<Dense> dense_list_like(const Tensors& tensors, const Tensors& like,
                                          const std::string& role, bool fp32_only = false) {
  require(tensors.size() == like.size(), role, "the lists must pair up");
  for (size_t i = 0; i < tensors.size(); ++i)
    require(tensors[i].numel() == 0 || same_layout(tensors[i], like[i]), role,
            "a tensor is laid out unlike its partner");
  for (const Tensor& tensor : tensors) require_same_device(tensor, like[0], role);
  auto list = dense_list(tensors, role);
  for (const Dense& item : list)
    require(!fp32_only || item.dtype == Dtype::f32, role, "expected float32");
  return list;
}

// State that may be absent.
inline std::vector<Dense> state_list(const Tensors& states, const Tensors& params,
                                     const std::string& role) {
  return dense_list_like(states, states.empty() ? Tensors{} : params, role, true);
}

inline std::vector<Strided> strided_list(const Tensors& tensors, const std::string& role) {
  std::vector<Strided> list;
  for (const Tensor& tensor : tensors) {
    auto sizes = tensor.sizes(), strides = tensor.strides();
    require_same_device(tensor, tensors[0], role);
    list.push_back({tensor.data_ptr(),
                    tensor.numel(),
                    dtype_of(tensor, role),
                    tensor.is_contiguous(),
                    {sizes.data(), sizes.size()},
                    {strides.data(), strides.size()}});
  }
  return list;
}

inline Images images(const Tensor& tensor, const std::string& role) {
  require(tensor.dim() == 4, role, "expected samples, channels, height and width");
  return {tensor.data_ptr(),
          dtype_of(tensor, role),
          tensor.size(0),
          tensor.size(1),
          tensor.size(2),
          tensor.size(3),
          {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)}};
}

inline WeightScores weight_scores(const Tensor& scores) {
  require(scores.dim() == 4 && dtype_of(scores, "scores") == Dtype::f32, "scores",
          "expected float32 outputs, inputs, height and width");
  require(scores.numel() == 0 || is_dense(scores), "scores", "a tensor has gaps in memory");
  return {static_cast<float*>(scores.data_ptr()),
          scores.size(0),
          scores.size(1),
          {scores.stride(0), scores.stride(1), scores.stride(2), scores.stride(3)}};
}

// One word list per tensor; with `or_none`, an empty one means that every weight moves.
inline std::vector<Words> word_list(const Tensors& masks, const Tensors& like, bool or_none) {
  require(masks.size() == like.size(), "masks", "the lists must pair up");
  std::vector<Words> list;
  for (size_t i = 0; i < masks.size(); ++i) {
    bool none = or_none && masks[i].numel() == 0;
    require(masks[i].scalar_type() == ScalarType::Int, "masks", "expected int32 words");
    require(none || masks[i].numel() == word_count(like[i].numel()), "masks",
            "expected ceil(numel / 32) words");
    require(masks[i].is_contiguous(), "masks", "words must be contiguous");
    require_same_device(masks[i], like[0], "masks");
    list.push_back({none ? nullptr : static_cast<uint32_t*>(masks[i].data_ptr())});
  }
  return list;
}

inline std::vector<float*> step_list(const Tensors& steps, const Tensors& like) {
  require(steps.size() == like.size(), "steps", "the lists must pair up");
  std::vector<float*> list;
  for (const Tensor& step : steps) {
    require(step.numel() == 1 && step.scalar_type() == ScalarType::Float, "steps",
            "expected one float32 each");
    require_same_device(step, like[0], "steps");
    list.push_back(static_cast<float*>(step.data_ptr()));
  }
  return list;
}

// One fp32 master copy per parameter, or an empty tensor; or none at all.
inline std::vector<float*> master_list(const Tensors& masters, const Tensors& params) {
  std::vector<float*> list;
  require(masters.empty() || masters.size() == params.size(), "masters", "the lists must pair up");
  for (size_t i = 0; i < masters.size(); ++i) {
    bool none = masters[i].numel() == 0;
    require(masters[i].scalar_type() == ScalarType::Float, "masters", "expected float32");
    require(none || same_layout(masters[i], params[i]), "masters",
            "a tensor is laid out unlike its parameter");
    require(none || params[i].scalar_type() != ScalarType::Float, "masters",
            "a float32 parameter needs none");
    require_same_device(masters[i], params[0], "masters");
    list.push_back(none ? nullptr : static_cast<float*>(masters[i].data_ptr()));
  }
  return list;
}

using MaybeTensor = std::optional<Tensor>;

// Whether a 0-dim number lies as fp64; it may also be fp32.
inline bool is_fp64(const Tensor& number, const std::string& role) {
  require(number.numel() == 1, role, "expected one element");
  bool fp64 = number.scalar_type() == ScalarType::Double;
  require(fp64 || number.scalar_type() == ScalarType::Float, role, "expected float32 or float64");
  return fp64;
}

// A number that lies in host memory.
inline double number_of(const Tensor& number, const std::string& role) {
  const void* data = number.data_ptr();
  return is_fp64(number, role) ? *static_cast<const double*>(data)
                               : double(*static_cast<const float*>(data));
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <class Items>
int64_t total_of(const std::vector<Items>& list) {
  int64_t total = 0;
  for (const Items& item : list) total += item.numel;
  return total;
}

inline Tensors new_words(const Tensors& like) {
  Tensors masks;
  for (const Tensor& tensor : like) {
    int64_t size = word_count(tensor.numel());
    masks.push_back(torch::stable::new_empty(tensor, {&size, 1}, ScalarType::Int));
  }
  return masks;
}

inline Tensor new_scalar(const Tensor& like) {
  return torch::stable::new_empty(like, {}, ScalarType::Float);
}

}  // namespace salun
