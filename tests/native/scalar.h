// What the ops must compute, one element at a time and from the formulae: the oracle of the driver.
#pragma once
#include "rules/rounding.h"
#include "tensors.h"

namespace scalar {

inline void accumulate(List& scores, List& grads, salun::ScoreRule rule, bool zero_grads) {
  for (size_t t = 0; t < scores.size(); ++t)
    for (int64_t i = 0; i < scores[t].numel; ++i) {
      float g = grads[t].get(i);
      if (rule == salun::ScoreRule::abs) g = std::fabs(g);
      if (rule == salun::ScoreRule::square) g = g * g;
      scores[t].set(i, scores[t].get(i) + g);
      if (zero_grads) grads[t].set(i, 0.0f);
    }
}

// Chosen first: the larger (smaller) magnitude; NaN last of all.
inline bool before(float a, float b, bool largest) {
  if (std::isnan(a) || std::isnan(b)) return !std::isnan(a) && std::isnan(b);
  return largest ? std::fabs(a) > std::fabs(b) : std::fabs(a) < std::fabs(b);
}

struct Selection {
  std::vector<bool> chosen;  // over the concatenated list
  float threshold;
};

// The k-th magnitude by partial ordering, then all before it and its first ties.
inline Selection select(const std::vector<float>& values, int64_t k, bool largest) {
  float infinity = std::numeric_limits<float>::infinity();
  if (k == 0) return {std::vector<bool>(values.size()), largest ? infinity : -infinity};
  std::vector<float> order = values;
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(),
                   [&](float a, float b) { return before(a, b, largest); });
  float kth = order[size_t(k - 1)];
  auto better = [&](float value) { return before(value, kth, largest); };
  int64_t ties = k - std::count_if(values.begin(), values.end(), better);
  std::vector<bool> chosen(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    bool equal = !better(values[i]) && !before(kth, values[i], largest);
    chosen[i] = better(values[i]) || (equal && ties-- > 0);
  }
  return {chosen, std::fabs(kth)};
}

inline float gradient(float g, bool maximize, float scale) {
  if (scale != 1.0f) g = g / scale;
  return maximize ? -g : g;
}

// How half parameters take results in a case: rounded to nearest, by a master, stochastically.
struct Half {
  List masters;  // empty, or one per parameter; one without elements is none
  std::vector<int64_t> origins;
  bool stochastic = false;
  int64_t seed = 0;
  std::vector<float*> pointers = {};  // filled by entry()

  bool has_master(size_t t) const { return !masters.empty() && masters[t].numel > 0; }

  salun::HalfPrecision entry() {
    pointers.clear();
    for (const Tensor& master : masters)
      pointers.push_back(master.numel ? static_cast<float*>(master.data()) : nullptr);
    return {pointers, origins, stochastic, seed};
  }
};

inline float weight(const List& params, const Half& half, size_t t, int64_t i) {
  return half.has_master(t) ? half.masters[t].get(i) : params[t].get(i);
}

// The chance to go up is what nearest rounding looks at: the distance to the number below.
inline void store(List& params, Half& half, size_t t, int64_t i, float value, float step) {
  if (half.has_master(t)) half.masters[t].set(i, value);
  if (!half.stochastic || params[t].dtype != salun::Dtype::bf16) return params[t].set(i, value);
  RoundingKey key = rounding_key(half.seed, step);
  uint32_t bits, random = rounding_bits(key, uint64_t(half.origins[t] + i));
  std::memcpy(&bits, &value, 4);
  uint32_t below = bits & 0xffff0000u;
  bool up = std::isfinite(value) && (bits & 0xffffu) + random >= 0x10000u;
  uint32_t chosen = std::isnan(value) ? 0x7fc00000u : below + (up ? 0x10000u : 0u);
  std::memcpy(&value, &chosen, 4);
  params[t].set(i, value);
}

inline void sgd(List& params, const List& grads, List& buffers, std::vector<float>& steps,
                const Masks& masks, Half& half, const SgdOptions& o, double lr, float scale) {
  auto momentum = float(o.momentum), decay = float(o.weight_decay);
  for (size_t t = 0; t < params.size(); ++t) {
    for (int64_t i = 0; i < params[t].numel; ++i) {
      if (!masks.get(t, i)) continue;
      float theta = weight(params, half, t, i), g = gradient(grads[t].get(i), o.maximize, scale);
      if (decay != 0) g = std::fma(theta, decay, g);
      if (momentum != 0) {
        float b =
            steps[t] == 0 ? g : std::fma(g, float(1 - o.dampening), buffers[t].get(i) * momentum);
        buffers[t].set(i, b);
        g = o.nesterov ? std::fma(b, momentum, g) : b;
      }
      store(params, half, t, i, std::fma(g, float(-lr), theta), steps[t] + 1);
    }
    steps[t] += 1;
  }
}

inline void adam(List& params, const List& grads, List& firsts, List& seconds, List& largests,
                 std::vector<float>& steps, const Masks& masks, Half& half, const AdamOptions& o,
                 double lr, float scale) {
  for (size_t t = 0; t < params.size(); ++t) {
    double step = double(steps[t] += 1);
    auto step_size = float(-(lr / (1 - std::pow(o.beta1, step))));
    auto correction = float(std::sqrt(1 - std::pow(o.beta2, step)));
    auto rest1 = float(1 - o.beta1), beta2 = float(o.beta2), rest2 = float(1 - o.beta2);
    for (int64_t i = 0; i < params[t].numel; ++i) {
      if (!masks.get(t, i)) continue;
      float theta = weight(params, half, t, i), g = gradient(grads[t].get(i), o.maximize, scale);
      if (o.weight_decay != 0 && o.decoupled) theta = theta * float(1 - lr * o.weight_decay);
      if (o.weight_decay != 0 && !o.decoupled) g = std::fma(theta, float(o.weight_decay), g);
      float m = firsts[t].get(i);
      m = rest1 < 0.5f ? std::fma(rest1, g - m, m) : std::fma(rest1 - 1.0f, g - m, g);
      float v = std::fma(rest2 * g, g, seconds[t].get(i) * beta2), root = v;
      firsts[t].set(i, m);
      seconds[t].set(i, v);
      if (!largests.empty()) {
        root = std::max(v, largests[t].get(i));
        largests[t].set(i, root);
      }
      float denominator = std::sqrt(root) / correction + float(o.eps);
      store(params, half, t, i, theta + step_size * m / denominator, float(step));
    }
  }
}

inline float soft_threshold(List& params, const List& anchors, int64_t k) {
  if (k == 0) return -std::numeric_limits<float>::infinity();
  std::vector<float> deltas;
  for (size_t t = 0; t < params.size(); ++t)
    for (int64_t i = 0; i < params[t].numel; ++i)
      deltas.push_back(params[t].get(i) - anchors[t].get(i));
  float tau = select(deltas, k, false).threshold;
  auto delta = deltas.begin();
  for (size_t t = 0; t < params.size(); ++t)
    for (int64_t i = 0; i < params[t].numel; ++i, ++delta) {
      float shrunk = std::copysign(std::fabs(*delta) - tau, *delta);
      float anchor = anchors[t].get(i);
      params[t].set(i, std::fabs(*delta) > tau ? anchor + shrunk : anchor);
    }
  return tau;
}

}  // namespace scalar
