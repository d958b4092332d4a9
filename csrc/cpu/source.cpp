#include "cpu/source.h"

#include "cpu/loops/loops.h"
#include "rules/number.h"

namespace salun::cpu {
namespace {

// Copies `count` elements from the row-major position `begin`: an odometer over the outer
// dimensions around a strided run of the last one.
template <class Format>
void gather(const Strided& tensor, int64_t begin, int64_t count, float* out) {
  using Raw = typename Format::Raw;
  const Raw* data = static_cast<const Raw*>(tensor.data);
  size_t last = tensor.sizes.size() - 1;
  for (int64_t done = 0; done < count;) {
    int64_t rest = begin + done, offset = 0;
    int64_t column = rest % tensor.sizes[last];
    rest /= tensor.sizes[last];
    for (size_t d = last; d-- > 0; rest /= tensor.sizes[d])
      offset += rest % tensor.sizes[d] * tensor.strides[d];
    int64_t run = std::min(tensor.sizes[last] - column, count - done);
    const Raw* from = data + offset + column * tensor.strides[last];
    for (int64_t i = 0; i < run; ++i)
      out[done + i] = Format::decode(from[i * tensor.strides[last]]);
    done += run;
  }
}

}  // namespace

const float* ScoreSource::read(int64_t tensor, int64_t begin, int64_t count, float* tile) const {
  const Strided& score = scores_[tensor];
  if (score.contiguous) {
    auto* data = static_cast<const char*>(score.data) + begin * size_of(score.dtype);
    return loops().load(data, score.dtype, count, tile);
  }
  switch (score.dtype) {
    case Dtype::f32: gather<Float32>(score, begin, count, tile); break;
    case Dtype::f16: gather<Float16>(score, begin, count, tile); break;
    case Dtype::bf16: gather<BFloat16>(score, begin, count, tile); break;
  }
  return tile;
}

const float* DeltaSource::read(int64_t tensor, int64_t begin, int64_t count, float* tile) const {
  const Dense &param = params_[tensor], &anchor = anchors_[tensor];
  loops().delta(param.at(begin), anchor.at(begin), param.dtype, count, tile);
  return tile;
}

}  // namespace salun::cpu
