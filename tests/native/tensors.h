// Tensors for the driver: exact-size memory, and numbers converted by other means than the rules'.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "ops.h"

#if defined(SALUN_GUARD_PAGES)
#include <sys/mman.h>
#include <unistd.h>
#endif

using salun::Dense;
using salun::Dtype;
using salun::kDtypes;
using salun::Strided;
using salun::Words;

// `bytes` of memory whose end is watched: by the sanitizer, else by an inaccessible page right
// behind it, so that a wide load past the end of a vectorised loop ends the run.
class Block {
 public:
  explicit Block(size_t bytes, unsigned char fill = 0xAA) : bytes_(bytes) {
#if defined(SALUN_GUARD_PAGES)
    size_t page = size_t(sysconf(_SC_PAGESIZE)), room = (bytes + page - 1) / page * page;
    mapped_ = room + page;
    void* base = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) std::abort();
    base_ = static_cast<unsigned char*>(base);
    mprotect(base_ + room, page, PROT_NONE);
    data_ = base_ + (room - bytes);
#else
    data_ = static_cast<unsigned char*>(std::malloc(bytes));
#endif
    std::memset(data_, fill, bytes);
  }
  Block(const Block& other) : Block(other.bytes_) { std::memcpy(data_, other.data_, bytes_); }
  Block& operator=(const Block&) = delete;
  ~Block() {
#if defined(SALUN_GUARD_PAGES)
    munmap(base_, mapped_);
#else
    std::free(data_);
#endif
  }

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  unsigned char* data_;
#if defined(SALUN_GUARD_PAGES)
  unsigned char* base_;
  size_t mapped_;
#endif
};

// Nearest even by choosing between the two neighbours: no bit tricks shared with the rules.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fc0;
  uint16_t below = uint16_t(bits >> 16), dropped = uint16_t(bits & 0xffff);
  bool up = dropped > 0x8000 || (dropped == 0x8000 && below % 2 == 1);
  return uint16_t(below + (up ? 1 : 0));
}

inline float from_bf16(uint16_t raw) {
  uint32_t bits = uint32_t(raw) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// One tensor: `numel` numbers of a dtype in a block of their own, in the order of memory.
struct Tensor {
  Dtype dtype;
  int64_t numel;
  Block block;

  Tensor(Dtype kind, int64_t size)
      : dtype(kind), numel(size), block(size_t(size * salun::size_of(kind))) {}

  // torch hands out null for an empty tensor.
  void* data() const { return numel ? block.data() : nullptr; }

  float get(int64_t i) const {
    uint16_t raw;
    float value;
    switch (dtype) {
      case Dtype::f32: return std::memcpy(&value, block.data() + 4 * i, 4), value;
      case Dtype::bf16: return std::memcpy(&raw, block.data() + 2 * i, 2), from_bf16(raw);
      default: break;
    }
    _Float16 half;
    std::memcpy(&half, block.data() + 2 * i, 2);
    return float(half);
  }

  void set(int64_t i, float value) {
    if (dtype == Dtype::f32) {
      std::memcpy(block.data() + 4 * i, &value, 4);
    } else if (dtype == Dtype::bf16) {
      uint16_t raw = to_bf16(value);
      std::memcpy(block.data() + 2 * i, &raw, 2);
    } else {
      auto half = _Float16(value);
      std::memcpy(block.data() + 2 * i, &half, 2);
    }
  }

  Dense dense() const { return {data(), numel, dtype}; }
};

using List = std::vector<Tensor>;

inline std::vector<Dense> dense(const List& list) {
  std::vector<Dense> result;
  for (const Tensor& tensor : list) result.push_back(tensor.dense());
  return result;
}

inline int64_t numel_of(const List& list) {
  return std::accumulate(list.begin(), list.end(), int64_t(0),
                         [](int64_t sum, const Tensor& t) { return sum + t.numel; });
}

// Values in [-4, 4] with repeats, zeros of both signs and a few extremes.
inline float some_value(std::mt19937& random) {
  switch (random() % 64) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2: return 1e-39f;
    case 3: return -6e-8f;
    default: return float(int(random() % 8001) - 4000) / 1000.0f;
  }
}

inline List random_list(const std::vector<int64_t>& sizes, Dtype dtype, uint32_t seed) {
  std::mt19937 random(seed);
  List list;
  for (int64_t size : sizes) {
    list.emplace_back(dtype, size);
    for (int64_t i = 0; i < size; ++i) list.back().set(i, some_value(random));
  }
  return list;
}

inline List zeros_like(const List& like) {
  List list;
  for (const Tensor& tensor : like) {
    list.emplace_back(Dtype::f32, tensor.numel);
    std::memset(list.back().block.data(), 0, list.back().block.bytes());
  }
  return list;
}

// Packed masks of a list: `present[t]` false is the null that means every weight moves.
struct Masks {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<bool> present;

  explicit Masks(const std::vector<int64_t>& sizes, unsigned char fill = 0xAA) {
    for (int64_t size : sizes) {
      blocks.push_back(std::make_unique<Block>(size_t((size + 31) / 32 * 4), fill));
      present.push_back(true);
    }
  }

  bool get(size_t t, int64_t i) const {
    return !present[t] || (blocks[t]->data()[i / 8] >> (i % 8) & 1);
  }
  void set(size_t t, int64_t i) { blocks[t]->data()[i / 8] |= uint8_t(1 << (i % 8)); }

  int64_t ones(size_t t, int64_t numel) const {
    int64_t count = 0;
    for (int64_t i = 0; i < numel; ++i) count += get(t, i);
    return count;
  }

  std::vector<Words> words() const {
    std::vector<Words> result;
    for (size_t t = 0; t < blocks.size(); ++t)
      result.push_back({present[t] ? reinterpret_cast<uint32_t*>(blocks[t]->data()) : nullptr});
    return result;
  }
};
