// Per-sample saliency of a convolution's weight: sums in a layout of their own, [panel of output
// channels][row of the window][channel], each owned by one thread, so that bits do not depend on
// how many there are.
#include <algorithm>
#include <vector>

#include "cpu/loops/loops.h"
#include "cpu/parallel.h"
#include "formats.h"
#include "ops.h"

namespace salun::cpu {
namespace {

constexpr int64_t kStaged = 2 << 20;      // numbers packed ahead of the products, or one sample's
constexpr int64_t kTilesPerUnit = 4;      // of work for a thread
constexpr int64_t kPlacesPerRun = 256;    // of output for which a tile of sums stays in L1

template <class Body>
void share(int64_t n, Body body) {
  parallel_for(
      n, 1,
      [](void* opaque, int64_t begin, int64_t end) {
        auto& run = *static_cast<Body*>(opaque);
        for (int64_t i = begin; i < end; ++i) run(i);
      },
      &body);
}

class Layer {
 public:
  Layer(const WeightScores& scores, const Images& grads, const Images& inputs,
        const Window& window)
      : scores_(scores), grads_(grads), inputs_(inputs), window_(window), run_(loops()) {
    outputs_ = scores.outputs / window.groups;
    panels_ = (outputs_ + run_.panel_lanes - 1) / run_.panel_lanes;
    rows_ = scores.inputs * window.kernel[0] * window.kernel[1];
    tiles_ = (rows_ + run_.tile_rows - 1) / run_.tile_rows;
    height_ = inputs.height + 2 * window.padding[0];
    width_ = inputs.width + 2 * window.padding[1];
    places_ = grads.height * grads.width;
    copied_ = inputs.dtype != Dtype::f32 || window.padding[0] + window.padding[1] > 0;
    for (int d = 0; d < 4; ++d) steps_[d] = inputs.strides[d];
    if (copied_) lay_out_copy();
    offsets_ = row_offsets();
    sums_.resize(size_t(all_panels() * tiles_ * tile_size()));
  }

  void add(float scale) {
    int64_t staged = packed_size() + copy_size();
    int64_t some = std::clamp<int64_t>(kStaged / std::max<int64_t>(staged, 1), 1, grads_.samples);
    packed_.resize(size_t(some * packed_size()));
    copies_.resize(size_t(some * copy_size()));
    for (int64_t first = 0; first < grads_.samples; first += some) {
      int64_t count = std::min(some, grads_.samples - first);
      share(count * all_panels(), [&](int64_t i) { pack(first, i / all_panels(), i % all_panels()); });
      if (copied_) share(count * inputs_.channels, [&](int64_t i) {
        copy(first, i / inputs_.channels, i % inputs_.channels);
      });
      int64_t units = (tiles_ + kTilesPerUnit - 1) / kTilesPerUnit;
      share(all_panels() * units,
            [&](int64_t i) { multiply(first, count, i / units, i % units * kTilesPerUnit); });
    }
    share(scores_.outputs, [&](int64_t output) { hand_over(output, scale); });
  }

 private:
  int64_t all_panels() const { return window_.groups * panels_; }
  int64_t tile_size() const { return run_.tile_rows * run_.panel_lanes; }
  int64_t packed_size() const { return all_panels() * places_ * run_.panel_lanes; }
  int64_t copy_size() const { return copied_ ? inputs_.channels * height_ * width_ : 0; }

  // A sample's inputs with their padding, as fp32; channels stay innermost where they were.
  void lay_out_copy() {
    bool last = inputs_.strides[1] == 1 && inputs_.channels > 1;
    steps_[1] = last ? 1 : height_ * width_;
    steps_[3] = last ? inputs_.channels : 1;
    steps_[2] = width_ * steps_[3];
  }

  // Of each row of the window from the first input of a group; rows past the last repeat it.
  std::vector<int64_t> row_offsets() const {
    std::vector<int64_t> offsets;
    int64_t area = window_.kernel[0] * window_.kernel[1];
    for (int64_t row = 0; row < tiles_ * run_.tile_rows; ++row) {
      int64_t r = std::min(row, rows_ - 1), place = r % area;
      offsets.push_back(r / area * steps_[1] +
                        place / window_.kernel[1] * window_.dilation[0] * steps_[2] +
                        place % window_.kernel[1] * window_.dilation[1] * steps_[3]);
    }
    return offsets;
  }

  void pack(int64_t first, int64_t sample, int64_t panel) {
    int64_t group = panel / panels_, lane = panel % panels_ * run_.panel_lanes;
    const auto* stride = grads_.strides;
    int64_t at = (first + sample) * stride[0] + (group * outputs_ + lane) * stride[1];
    PanelShape shape = {grads_.height, grads_.width, stride[1], stride[2], stride[3]};
    run_.pack_panel(static_cast<const char*>(grads_.data) + at * size_of(grads_.dtype),
                    grads_.dtype, &shape, std::min(outputs_ - lane, run_.panel_lanes),
                    packed_of(sample, panel));
  }

  float* packed_of(int64_t sample, int64_t panel) {
    return packed_.data() + sample * packed_size() + panel * places_ * run_.panel_lanes;
  }

  void copy(int64_t first, int64_t sample, int64_t channel) {
    float* to = copies_.data() + sample * copy_size() + channel * steps_[1];
    with_format(inputs_.dtype, [&](auto format) {
      using Format = decltype(format);
      auto* from = static_cast<const typename Format::Raw*>(inputs_.data) +
                   (first + sample) * inputs_.strides[0] + channel * inputs_.strides[1];
      for (int64_t y = 0; y < height_; ++y)
        for (int64_t x = 0; x < width_; ++x) {
          int64_t iy = y - window_.padding[0], ix = x - window_.padding[1];
          bool inside = iy >= 0 && iy < inputs_.height && ix >= 0 && ix < inputs_.width;
          to[y * steps_[2] + x * steps_[3]] =
              inside ? Format::decode(from[iy * inputs_.strides[2] + ix * inputs_.strides[3]])
                     : 0.0f;
        }
    });
  }

  const float* inputs_of(int64_t first, int64_t sample, int64_t group) const {
    int64_t channel = group * scores_.inputs * steps_[1];
    if (copied_) return copies_.data() + sample * copy_size() + channel;
    return static_cast<const float*>(inputs_.data) + (first + sample) * inputs_.strides[0] +
           channel;
  }

  // A unit of work: some tiles of one panel. Samples go in runs through each tile.
  void multiply(int64_t first, int64_t count, int64_t panel, int64_t tile) {
    std::vector<SampleProduct> samples;
    for (int64_t s = 0; s < count; ++s)
      samples.push_back({packed_of(s, panel), inputs_of(first, s, panel / panels_), grads_.height,
                         grads_.width, window_.stride[0] * steps_[2],
                         window_.stride[1] * steps_[3]});
    int64_t run = std::max<int64_t>(1, kPlacesPerRun / std::max<int64_t>(places_, 1));
    int64_t last = std::min(tile + kTilesPerUnit, tiles_);
    for (int64_t s = 0; s < count; s += run)
      for (int64_t t = tile; t < last; ++t)
        run_.add_tile(samples.data() + s, std::min(run, count - s),
                      offsets_.data() + t * run_.tile_rows,
                      sums_.data() + (panel * tiles_ + t) * tile_size());
  }

  void hand_over(int64_t output, float scale) {
    int64_t group = output / outputs_, inner = output % outputs_;
    int64_t panel = group * panels_ + inner / run_.panel_lanes;
    const float* sum = sums_.data() + panel * tiles_ * tile_size() + inner % run_.panel_lanes;
    float* score = scores_.data + output * scores_.strides[0];
    for (int64_t c = 0; c < scores_.inputs; ++c)
      for (int64_t y = 0; y < window_.kernel[0]; ++y)
        for (int64_t x = 0; x < window_.kernel[1]; ++x, sum += run_.panel_lanes)
          score[c * scores_.strides[1] + y * scores_.strides[2] + x * scores_.strides[3]] +=
              scale * *sum;
  }

  const WeightScores& scores_;
  const Images &grads_, &inputs_;
  const Window& window_;
  const Loops& run_;
  int64_t outputs_, panels_, rows_, tiles_;  // of a group
  int64_t height_, width_;                   // of the padded inputs
  int64_t places_;
  bool copied_;
  int64_t steps_[4];  // strides of the inputs as they are read
  std::vector<int64_t> offsets_;
  std::vector<float> sums_, packed_, copies_;
};

}  // namespace

void per_sample(const WeightScores& scores, const Images& grads, const Images& inputs,
                const Window& window, float scale) {
  int64_t weights = scores.outputs * scores.inputs * window.kernel[0] * window.kernel[1];
  if (weights == 0 || grads.samples * grads.height * grads.width == 0) return;
  Layer(scores, grads, inputs, window).add(scale);
}

}  // namespace salun::cpu
