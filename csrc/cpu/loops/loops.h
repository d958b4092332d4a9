// The hot loops, compiled once per instruction set (isa.cpp) and chosen at run time (../isa.cpp).
// They see raw pointers and no standard-library templates: code compiled for AVX-512 must never be
// shared by the linker with code that runs on any CPU.
#pragma once
#include "ops.h"
#include "rules/rounding.h"

namespace salun::cpu {

constexpr int64_t kTile = 512;  // elements staged in L1 at a time; a multiple of the word

// Consecutive weights of a parameter, and how they take fp32 results.
struct Weights {
  void* data;
  Dtype dtype;
  float* master;  // null without
  bool stochastic;
  RoundingKey key;
  uint64_t index;  // flat index of the first
};

struct SgdStep {
  SgdCoefficients coefficients;
  Momentum mode;
  bool nesterov, decay, maximize;
  float grad_scale;
};

struct AdamStep {
  AdamCoefficients coefficients;
  Decay decay;
  bool maximize;
  float grad_scale;
};

struct Bracket {
  uint32_t low, high;  // keys
};

struct Census {
  int64_t above, at_high, inside, at_low;  // relative to a bracket
  bool nonfinite;
};

// One sample of a layer, as a tile of its gradient is made from it.
struct SampleProduct {
  const float* grads;             // packed: [height * width][panel_lanes]
  const float* inputs;            // at the first place of the output
  int64_t height, width;          // places of the output
  int64_t step_y, step_x;         // in inputs, from place to place
};

struct PanelShape {
  int64_t height, width, stride_lane, stride_y, stride_x;
};

struct Loops {
  // All: n elements from each pointer. words may be null: every weight moves.
  void (*accumulate)(float* score, void* grad, Dtype dtype, ScoreRule rule, bool zero, int64_t n);
  // Returns data itself where it is fp32, else tile.
  const float* (*load)(const void* data, Dtype dtype, int64_t n, float* tile);
  void (*delta)(const void* param, const void* anchor, Dtype dtype, int64_t n, float* out);
  // Counts keys relative to the bracket and copies those strictly inside to candidates [n].
  void (*take_census)(const float* scores, int64_t n, Bracket bracket, bool largest,
                      uint32_t* candidates, Census* census);
  void (*histogram)(const float* scores, int64_t n, uint32_t prefix, int level, bool largest,
                    int64_t* counts);
  // Bits of keys >= threshold; returns how many keys equal it.
  int64_t (*pack)(const float* scores, int64_t n, uint32_t threshold, bool largest,
                  uint32_t* words);
  void (*masked_sgd)(const Weights* weights, const void* grad, Dtype grad_dtype, float* buffer,
                     const uint32_t* words, int64_t n, const SgdStep* step);
  void (*masked_adam)(const Weights* weights, const void* grad, Dtype grad_dtype, float* m,
                      float* v, float* v_max, const uint32_t* words, int64_t n,
                      const AdamStep* step);
  void (*soft_threshold)(void* param, const void* anchor, Dtype dtype, int64_t n, float tau);
  int64_t tile_rows, panel_lanes;  // of a tile of sums: [tile_rows][panel_lanes]
  void (*pack_panel)(const void* grads, Dtype dtype, const PanelShape* shape, int64_t lanes,
                     float* packed);
  void (*add_tile)(const SampleProduct* samples, int64_t count, const int64_t* offsets,
                   float* sums);
};

// The loops of the best instruction set of this machine, or of SALUN_FAST_ISA.
const Loops& loops();

}  // namespace salun::cpu
