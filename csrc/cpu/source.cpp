#include "cpu/source.h"

#include "formats.h"
#include "rules/number.h"
#include "rules/soft_threshold.h"

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

const void* element(const void* data, Dtype dtype, int64_t index) {
  return static_cast<const char*>(data) + index * size_of(dtype);
}

float decoded(const void* data, Dtype dtype, int64_t index) {
  float value = 0;
  with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    value = Format::decode(static_cast<const typename Format::Raw*>(data)[index]);
  });
  return value;
}

}  // namespace

View ScoreSource::view(const Chunk& chunk, float* tile) const {
  const Strided& score = scores_[chunk.tensor];
  if (score.contiguous) {
    return {element(score.data, score.dtype, chunk.begin), nullptr, score.dtype};
  }
  with_format(score.dtype, [&](auto format) {
    gather<decltype(format)>(score, chunk.begin, chunk.count, tile);
  });
  return {tile, nullptr, Dtype::f32};
}

void ScoreSource::prefetch(int64_t tensor, int64_t index) const {
  const Strided& score = scores_[tensor];
  if (score.contiguous) __builtin_prefetch(element(score.data, score.dtype, index));
}

float ScoreSource::value(int64_t tensor, int64_t index) const {
  const Strided& score = scores_[tensor];
  if (score.contiguous) return decoded(score.data, score.dtype, index);
  float value;
  with_format(score.dtype, [&](auto format) { gather<decltype(format)>(score, index, 1, &value); });
  return value;
}

View DeltaSource::view(const Chunk& chunk, float*) const {
  const Dense &param = params_[chunk.tensor], &anchor = anchors_[chunk.tensor];
  return {param.at(chunk.begin), anchor.at(chunk.begin), param.dtype};
}

void DeltaSource::prefetch(int64_t tensor, int64_t index) const {
  __builtin_prefetch(params_[tensor].at(index));
  __builtin_prefetch(anchors_[tensor].at(index));
}

float DeltaSource::value(int64_t tensor, int64_t index) const {
  const Dense &param = params_[tensor], &anchor = anchors_[tensor];
  return soft_delta(decoded(param.data, param.dtype, index),
                    decoded(anchor.data, anchor.dtype, index));
}

}  // namespace salun::cpu
