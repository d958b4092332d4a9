// Lists of tensors cut into chunks, numbered through the list: tensor t owns the chunks
// [first[t], first[t + 1]). Empty tensors own none.
#pragma once
#include <vector>

#include "rules/platform.h"

namespace salun {

template <class Tensors>
std::vector<int64_t> first_chunks(const Tensors& tensors, int64_t chunk) {
  std::vector<int64_t> first = {0};
  for (const auto& tensor : tensors)
    first.push_back(first.back() + (tensor.numel + chunk - 1) / chunk);
  return first;
}

// The tensor that owns a chunk: the last of `count` whose first chunk is not beyond it.
SALUN_RULE int64_t owner_of(const int64_t* first, int64_t count, int64_t chunk) {
  int64_t low = 0, high = count;  // first[low] <= chunk < first[high]
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    if (first[middle] <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace salun
