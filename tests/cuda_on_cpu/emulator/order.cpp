#include "order.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>

namespace cuda_on_cpu {

Order Order::from_environment() {
  static uint64_t launches = 0;
  const char* value = std::getenv("CUDA_ON_CPU_ORDER");
  std::string name = value ? value : "forward";
  Order order;
  if (name == "forward") return order;
  order.kind_ = name == "reverse" ? Kind::reverse : Kind::shuffled;
  if (order.kind_ == Kind::shuffled) order.random_.seed(unsigned(std::stoul(name) + ++launches));
  return order;
}

Order Order::for_block(uint64_t index) const {
  Order order = *this;
  order.random_.seed(unsigned(order.random_() + index));
  return order;
}

std::vector<uint64_t> Order::of(uint64_t count) {
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), uint64_t(0));
  if (kind_ == Kind::reverse) std::reverse(order.begin(), order.end());
  if (kind_ == Kind::shuffled) std::shuffle(order.begin(), order.end(), random_);
  return order;
}

unsigned Order::patience() { return kind_ == Kind::shuffled ? 1 + random_() % 16 : 1 << 14; }

}  // namespace cuda_on_cpu
