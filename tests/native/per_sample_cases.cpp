// per_sample against its definition, on whole numbers: every order of additions gives the same
// bits.
#include "cases.h"

namespace {

using namespace salun;

struct Shape {
  int64_t samples, inputs, outputs, height, width;
  Window window;
};

// Row-major, or with the channels innermost.
Images images(const Tensor& tensor, int64_t samples, int64_t channels, int64_t height,
              int64_t width, bool channels_last) {
  int64_t area = height * width;
  if (channels_last)
    return {tensor.data(),
            tensor.dtype,
            samples,
            channels,
            height,
            width,
            {channels * area, 1, width * channels, channels}};
  return {tensor.data(),
          tensor.dtype,
          samples,
          channels,
          height,
          width,
          {channels * area, area, width, 1}};
}

Tensor whole_numbers(Dtype dtype, int64_t numel, uint32_t seed) {
  std::mt19937 random(seed);
  Tensor tensor(dtype, numel);
  for (int64_t i = 0; i < numel; ++i) tensor.set(i, float(int(random() % 9) - 4));
  return tensor;
}

int64_t index(const Images& images, int64_t n, int64_t c, int64_t y, int64_t x) {
  return n * images.strides[0] + c * images.strides[1] + y * images.strides[2] +
         x * images.strides[3];
}

float one_weight(const Shape& shape, const Tensor& grads, const Images& g, const Tensor& inputs,
                 const Images& in, int64_t output, int64_t input, int64_t ky, int64_t kx) {
  const Window& w = shape.window;
  int64_t channel = output / (shape.outputs / w.groups) * (shape.inputs / w.groups) + input;
  float sum = 0;
  for (int64_t n = 0; n < shape.samples; ++n) {
    float own = 0;
    for (int64_t oy = 0; oy < g.height; ++oy)
      for (int64_t ox = 0; ox < g.width; ++ox) {
        int64_t y = oy * w.stride[0] - w.padding[0] + ky * w.dilation[0];
        int64_t x = ox * w.stride[1] - w.padding[1] + kx * w.dilation[1];
        if (y < 0 || y >= in.height || x < 0 || x >= in.width) continue;
        own += grads.get(index(g, n, output, oy, ox)) * inputs.get(index(in, n, channel, y, x));
      }
    sum += std::fabs(own);
  }
  return sum;
}

void check(const Shape& shape, Dtype dtype, bool channels_last) {
  const Window& w = shape.window;
  int64_t sides[2], sizes[2] = {shape.height, shape.width};
  for (int d = 0; d < 2; ++d)
    sides[d] =
        (sizes[d] + 2 * w.padding[d] - w.dilation[d] * (w.kernel[d] - 1) - 1) / w.stride[d] + 1;
  Tensor grads = whole_numbers(dtype, shape.samples * shape.outputs * sides[0] * sides[1], 71);
  Tensor inputs =
      whole_numbers(dtype, shape.samples * shape.inputs * shape.height * shape.width, 72);
  Images g = images(grads, shape.samples, shape.outputs, sides[0], sides[1], channels_last);
  Images in = images(inputs, shape.samples, shape.inputs, shape.height, shape.width, channels_last);
  int64_t inner = shape.inputs / w.groups, area = w.kernel[0] * w.kernel[1];
  Tensor scores = whole_numbers(Dtype::f32, shape.outputs * inner * area, 73), wanted = scores;
  for (int64_t i = 0; i < scores.numel; ++i)
    wanted.set(i, wanted.get(i) + 0.5f * one_weight(shape, grads, g, inputs, in, i / (inner * area),
                                                    i / area % inner, i / w.kernel[1] % w.kernel[0],
                                                    i % w.kernel[1]));
  cpu::per_sample({static_cast<float*>(scores.data()),
                   shape.outputs,
                   inner,
                   {inner * area, area, w.kernel[1], 1}},
                  g, in, w, 0.5f);
  expect_same(scores.block, wanted.block, at("per_sample", dtype, size_t(shape.samples)));
}

}  // namespace

void per_sample_cases() {
  const Shape shapes[] = {
      {1, 1, 1, 1, 1, {{1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}},
      {3, 5, 33, 6, 5, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}},
      {2, 4, 8, 7, 9, {{3, 2}, {2, 3}, {1, 0}, {1, 2}, 2}},
      {2, 5, 5, 5, 5, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 5}},
      {2, 40, 70, 1, 67, {{1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}},
      {0, 2, 3, 4, 4, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}},
  };
  for (const Shape& shape : shapes)
    for (Dtype dtype : kDtypes)
      for (bool channels_last : {false, true}) check(shape, dtype, channels_last);
}
