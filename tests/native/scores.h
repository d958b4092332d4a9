// Scores as selection sees them: of any strides, with their values in row-major order.
#pragma once
#include "tensors.h"

struct Scores {
  List memory;
  std::vector<std::vector<int64_t>> shapes, strides;
  std::vector<bool> contiguous;
  std::vector<int64_t> numels;

  void add(Tensor tensor, std::vector<int64_t> shape, std::vector<int64_t> steps, bool plain) {
    int64_t numel = 1;
    for (int64_t size : shape) numel *= size;
    memory.push_back(std::move(tensor));
    shapes.push_back(std::move(shape));
    strides.push_back(std::move(steps));
    contiguous.push_back(plain);
    numels.push_back(numel);
  }

  std::vector<Strided> spans() const {
    std::vector<Strided> result;
    for (size_t t = 0; t < memory.size(); ++t)
      result.push_back(
          {memory[t].data(), numels[t], memory[t].dtype, contiguous[t], shapes[t], strides[t]});
    return result;
  }

  std::vector<float> values() const {
    std::vector<float> result;
    for (size_t t = 0; t < memory.size(); ++t)
      for (int64_t i = 0; i < numels[t]; ++i) {
        int64_t rest = i, offset = 0;
        for (size_t d = shapes[t].size(); d-- > 0; rest /= shapes[t][d])
          offset += rest % shapes[t][d] * strides[t][d];
        result.push_back(memory[t].get(offset));
      }
    return result;
  }
};

inline Scores flat_scores(List list) {
  Scores scores;
  for (Tensor& tensor : list) {
    int64_t numel = tensor.numel;
    scores.add(std::move(tensor), {numel}, {1}, true);
  }
  return scores;
}
