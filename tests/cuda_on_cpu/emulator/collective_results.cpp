#include "collective_results.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>

namespace cuda_on_cpu {
namespace {

// What a shuffle reads from a lane that takes no part.
constexpr uint64_t kUndefined = 0xdeadbeefdeadbeef;

unsigned lane_bit(const Thread& thread) { return 1u << (thread.id % kWarpSize); }

template <class Condition>
unsigned lanes_where(std::span<Thread* const> members, Condition holds) {
  unsigned lanes = 0;
  for (Thread* thread : members)
    if (holds(*thread)) lanes |= lane_bit(*thread);
  return lanes;
}

template <class Combine>
uint64_t combined(std::span<Thread* const> members, Combine combine) {
  int64_t sum = int64_t(members.front()->arrival.value);
  for (Thread* thread : members.subspan(1)) sum = combine(sum, int64_t(thread->arrival.value));
  return uint64_t(sum);
}

uint64_t read_from(std::span<Thread> warp, const Arrival& reader) {
  bool takes_part =
      reader.source >= 0 && reader.source < int(warp.size()) && (reader.mask >> reader.source & 1u);
  return takes_part ? warp[size_t(reader.source)].arrival.value : kUndefined;
}

uint64_t warp_result(std::span<Thread* const> members, std::span<Thread> warp, const Arrival& own) {
  auto says_yes = [](const Thread& thread) { return thread.arrival.value != 0; };
  auto agrees = [&](const Thread& thread) { return thread.arrival.value == own.value; };
  using I = int64_t;
  switch (own.kind) {
    case Collective::ballot: return lanes_where(members, says_yes);
    case Collective::any: return lanes_where(members, says_yes) != 0;
    case Collective::all: return lanes_where(members, says_yes) == own.mask;
    case Collective::shuffle: return read_from(warp, own);
    case Collective::match_any: return lanes_where(members, agrees);
    case Collective::reduce_add: return combined(members, [](I a, I b) { return a + b; });
    case Collective::reduce_min: return combined(members, [](I a, I b) { return a < b ? a : b; });
    case Collective::reduce_max: return combined(members, [](I a, I b) { return a > b ? a : b; });
    case Collective::reduce_and: return combined(members, [](I a, I b) { return a & b; });
    case Collective::reduce_or: return combined(members, [](I a, I b) { return a | b; });
    case Collective::reduce_xor: return combined(members, [](I a, I b) { return a ^ b; });
    default: return 0;
  }
}

}  // namespace

bool same_call(const Arrival& a, const Arrival& b) {
  return a.kind == b.kind && a.mask == b.mask && a.site.line() == b.site.line() &&
         std::strcmp(a.site.file_name(), b.site.file_name()) == 0;
}

void set_block_results(std::span<Thread* const> threads) {
  auto says_yes = [](const Thread* thread) { return thread->arrival.value != 0; };
  size_t count = size_t(std::count_if(threads.begin(), threads.end(), says_yes));
  for (Thread* thread : threads) switch (thread->arrival.kind) {
      case Collective::barrier_count: thread->result = count; break;
      case Collective::barrier_and: thread->result = count == threads.size(); break;
      case Collective::barrier_or: thread->result = count > 0; break;
      default: break;
    }
}

// A result may need the values of all: none is overwritten before all are known.
void set_warp_results(std::span<Thread* const> members, std::span<Thread> warp) {
  for (Thread* thread : members) thread->result = warp_result(members, warp, thread->arrival);
}

std::string hexadecimal(unsigned mask) {
  char text[11];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

const char* name_of(Collective kind) {
  constexpr const char* kNames[] = {
      "__syncthreads",     "__syncthreads_count", "__syncthreads_and",
      "__syncthreads_or",  "__syncwarp",          "__ballot_sync",
      "__any_sync",        "__all_sync",          "__shfl_sync or its kin",
      "__match_any_sync",  "__reduce_add_sync",   "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_and_sync",   "__reduce_or_sync",
      "__reduce_xor_sync",
  };
  static_assert(std::size(kNames) == size_t(Collective::reduce_xor) + 1);
  return kNames[size_t(kind)];
}

}  // namespace cuda_on_cpu
