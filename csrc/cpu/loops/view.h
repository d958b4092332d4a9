// A view as fp32 values, a run that fits in L1 at a time: scores that are fp32 are read where they
// lie, all others are made in a tile.
#pragma once
#include "cpu/loops/tile.h"
#include "rules/soft_threshold.h"

namespace salun::cpu {
namespace {

constexpr int64_t kRun = 2048;

void delta(const void* param, const void* anchor, Dtype dtype, int64_t n, float* out) {
  with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    auto* p = static_cast<const typename Format::Raw*>(param);
    auto* a = static_cast<const typename Format::Raw*>(anchor);
    for (int64_t i = 0; i < n; ++i) out[i] = soft_delta(Format::decode(p[i]), Format::decode(a[i]));
  });
}

const float* read_run(const View& view, int64_t at, int64_t n, float* tile) {
  const void* data = advance(view.data, view.dtype, at);
  if (!view.anchor) return load(data, view.dtype, n, tile);
  delta(data, advance(view.anchor, view.dtype, at), view.dtype, n, tile);
  return tile;
}

// Calls body(values, at, count) for runs that cover the view: whole words but for the last.
template <class Body>
void for_each_run(const View& view, int64_t n, Body body) {
  float tile[kRun];
  for (int64_t at = 0; at < n; at += kRun) {
    int64_t count = n - at < kRun ? n - at : kRun;
    body(read_run(view, at, count, tile), at, count);
  }
}

}  // namespace
}  // namespace salun::cpu
