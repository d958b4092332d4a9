// What every case needs: comparisons that end the run, sizes, and the cases' names.
#pragma once
#include <cstdio>

#include "ops.h"
#include "scalar.h"
#include "tensors.h"

void accumulate_cases();
void select_cases();
void sampling_cases(bool briefly);
void step_cases();
void soft_threshold_cases();
void per_sample_cases();
void plan_cases();

// A planted fault by name, to show that the build reports it. False where there is none.
bool run_fault(const std::string& name);

inline int64_t held = 0;              // comparisons so far
inline bool threads_overlap = false;  // set by a planted fault

[[noreturn]] inline void fail(const std::string& what) {
  std::printf("FAIL %s\n", what.c_str());
  std::exit(1);
}

inline void expect(bool truth, const std::string& what) {
  if (!truth) fail(what);
  ++held;
}

inline bool same(float a, float b) {
  return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b));
}

inline void expect_same(const Block& found, const Block& wanted, const std::string& what) {
  if (std::memcmp(found.data(), wanted.data(), wanted.bytes()) != 0)
    for (size_t i = 0; i < wanted.bytes(); ++i)
      if (found.data()[i] != wanted.data()[i]) fail(what + " differs at byte " + std::to_string(i));
  ++held;
}

inline void expect_same(const List& found, const List& wanted, const std::string& what) {
  for (size_t t = 0; t < wanted.size(); ++t)
    expect_same(found[t].block, wanted[t].block, what + ": tensor " + std::to_string(t));
}

inline void expect_same(const Masks& found, const Masks& wanted, const std::string& what) {
  for (size_t t = 0; t < wanted.blocks.size(); ++t)
    expect_same(*found.blocks[t], *wanted.blocks[t], what + ": words " + std::to_string(t));
}

// Around the word (32), the tile (512) and the chunk (16384); empty first, in the middle and last.
inline const std::vector<int64_t> kSizes = {0,   1,   31,    32,    33,    0,     511,
                                            512, 513, 16383, 16384, 16385, 40000, 0};
inline const std::vector<std::vector<int64_t>> kLists = {kSizes, {},     {0},    {0, 0},
                                                         {0, 7}, {7, 0}, {16385}};

inline std::string at(const char* op, Dtype dtype, size_t tensors) {
  static const char* names[] = {"f32", "f16", "bf16"};
  return std::string(op) + " " + names[int(dtype)] + " on " + std::to_string(tensors) + " tensors";
}

inline std::vector<int64_t> some_k(int64_t n) {
  std::vector<int64_t> ks = {0, 1, n / 10, n / 2, n - 1, n};
  std::erase_if(ks, [&](int64_t k) { return k < 0 || k > n; });
  std::sort(ks.begin(), ks.end());
  ks.erase(std::unique(ks.begin(), ks.end()), ks.end());
  return ks;
}

inline std::vector<float*> pointers(std::vector<float>& steps) {
  std::vector<float*> result;
  for (float& step : steps) result.push_back(&step);
  return result;
}
