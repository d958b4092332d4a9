#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "collective_results.h"
#include "sanitizers.h"
#include "shared_memory.h"

namespace cuda_on_cpu {
namespace {

using State = Thread::State;

thread_local Block* in_progress = nullptr;  // on this OS thread

uint3 index_in(dim3 size, uint64_t i) {
  return {unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y)};
}

std::string listed(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

std::string told(Site site) {
  return std::string(" at ") + site.file_name() + ":" + std::to_string(site.line());
}

}  // namespace

// --- one run -------------------------------------------------------------------------------------

void Block::run(Launch& launch, uint64_t index) {
  launch_ = &launch;
  begin(index);
  while (!launch.failed() && !all_done())
    if (!run_ready_threads() && !try_barrier() && !launch.failed()) report_deadlock();
  end();
}

void Block::begin(uint64_t index) {
  Unwatched quiet;
  prepare_shared_memory();
  in_progress = this;
  index_ = index_in(launch_->grid, index);
  if (watches_threads()) scheduler_.tsan = __tsan_get_current_fiber();
  order_ = launch_->order.for_block(index);
  turns_ = order_.of(launch_->threads());
  threads_.assign(launch_->threads(), Thread{});
  for (unsigned i = 0; i < threads_.size(); ++i) {
    threads_[i].id = i;
    threads_[i].index = index_in(launch_->block, i);
    threads_[i].patience = order_.patience();
  }
}

void Block::end() {
  for (Thread& thread : threads_) {
    if (!thread.fibre) continue;
    release_to_host(thread);
    thread.fibre->abandon();
    FibrePool::instance().give_back(thread.fibre);
  }
  in_progress = nullptr;
}

bool Block::all_done() const {
  return std::all_of(threads_.begin(), threads_.end(),
                     [](const Thread& thread) { return thread.state == State::done; });
}

// --- turns ---------------------------------------------------------------------------------------

// Each ready thread runs until it waits, ends or gives way.
bool Block::run_ready_threads() {
  bool ran = false;
  for (uint64_t i : turns_) {
    Thread& thread = threads_[i];
    thread.gave_way = false;
    while (thread.state == State::ready && !thread.gave_way) {
      ran = true;
      take_turn(thread);
      if (launch_->failed()) return ran;
    }
  }
  return ran;
}

void Block::take_turn(Thread& thread) {
  if (!thread.fibre) start(thread);
  current_ = &thread;
  thread.fibre->enter(scheduler_);
  if (thread.state == State::done) finish(thread);
  if (thread.state == State::at_warp) try_collective(thread);
  if (!thread.gave_way) return;
  if (launch_->takes_too_long())
    fail("livelock: " + describe(thread) + " keeps repeating atomic operations");
  if (launch_->workers > 1) std::this_thread::yield();
}

void Block::start(Thread& thread) {
  thread.fibre = FibrePool::instance().take();
  thread.fibre->prepare(&Block::thread_body);
  if (!watches_threads()) return;
  // This OS thread's own variables, the shared memory among them, were there before.
  __tsan_switch_to_fiber(thread.fibre->tsan(), kInOrder);
  __tsan_acquire(&launch_->begin);
  __tsan_switch_to_fiber(scheduler_.tsan, kWithoutOrder);
}

void Block::finish(Thread& thread) {
  release_to_host(thread);
  FibrePool::instance().give_back(thread.fibre);
  thread.fibre = nullptr;
}

// What the thread did is seen by whoever waits for the launch.
void Block::release_to_host(Thread& thread) {
  if (!watches_threads()) return;
  __tsan_switch_to_fiber(thread.fibre->tsan(), kWithoutOrder);
  __tsan_release(&launch_->end);
  __tsan_switch_to_fiber(scheduler_.tsan, kWithoutOrder);
}

void Block::thread_body() {
  Block& block = *in_progress;
  Fibre::arrived(block.scheduler_);
  block.launch_->call(block.launch_->context);
  Thread& thread = block.current();
  thread.state = State::done;
  thread.fibre->leave(block.scheduler_, true);
}

void Block::leave() { current_->fibre->leave(scheduler_, false); }

uint64_t Block::meet(State state, const Arrival& arrival) {
  Thread& thread = *current_;
  thread.state = state;
  thread.arrival = arrival;
  leave();
  return thread.result;
}

void Block::before_atomic(void* address) {
  Thread& thread = *current_;
  thread.fences.before_atomic(address);
  if (--thread.patience > 0) return;
  thread.patience = order_.patience();
  thread.gave_way = true;
  leave();
}

// --- collectives ---------------------------------------------------------------------------------

std::span<Thread> Block::warp_of(const Thread& thread) {
  size_t first = thread.id / kWarpSize * kWarpSize;
  return {threads_.data() + first, std::min<size_t>(kWarpSize, threads_.size() - first)};
}

bool Block::in_mask(const Thread& caller, const Thread& other) const {
  return caller.arrival.mask >> (other.id % kWarpSize) & 1u;
}

// Completes the collective of a warp if all lanes that its mask names are there.
void Block::try_collective(Thread& last) {
  std::span<Thread> warp = warp_of(last);
  if (!in_mask(last, last)) return report_foreign_mask(last);
  if (last.arrival.mask >> 1 >> (warp.size() - 1)) return;  // names lanes that do not exist
  std::array<Thread*, kWarpSize> members;
  size_t count = 0;
  for (Thread& other : warp) {
    if (!in_mask(last, other)) continue;
    if (other.state != State::at_warp || !same_call(other.arrival, last.arrival)) return;
    members[count++] = &other;
  }
  std::span<Thread* const> all(members.data(), count);
  set_warp_results(all, warp);
  if (last.arrival.kind == Collective::sync) order_memory(all);  // no other one orders memory
  for (Thread* thread : all) thread->state = State::ready;
}

bool Block::try_barrier() {
  std::vector<Thread*> waiting;
  for (Thread& thread : threads_)
    if (thread.state == State::at_barrier) waiting.push_back(&thread);
  bool same = std::all_of(waiting.begin(), waiting.end(), [&](Thread* thread) {
    return same_call(thread->arrival, waiting.front()->arrival);
  });
  if (waiting.size() < threads_.size() || !same) return false;
  set_block_results(waiting);
  order_memory(waiting);
  for (Thread* thread : waiting) thread->state = State::ready;
  return true;
}

// What each of them did before is seen by all of them after.
void Block::order_memory(std::span<Thread* const> threads) {
  if (!watches_threads()) return;
  void* token = std::malloc(1);  // a fresh one: what it collects concerns these threads only
  for (Thread* thread : threads) {
    __tsan_switch_to_fiber(thread->fibre->tsan(), kWithoutOrder);
    __tsan_release(token);
  }
  for (Thread* thread : threads) {
    __tsan_switch_to_fiber(thread->fibre->tsan(), kWithoutOrder);
    __tsan_acquire(token);
  }
  __tsan_switch_to_fiber(scheduler_.tsan, kWithoutOrder);
  std::free(token);
}

void Fences::fence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  fenced_ = true;
  if (!watches_threads()) return;
  for (void* address : recent_)
    if (address) __tsan_acquire(address);
}

void Fences::before_atomic(void* address) {
  if (!watches_threads()) return;
  if (fenced_) __tsan_release(address);
  if (std::find(recent_.begin(), recent_.end(), address) == recent_.end())
    recent_[count_++ % kRemembered] = address;
}

// --- reports -------------------------------------------------------------------------------------

void Block::fail(const std::string& why) { launch_->fail(why); }

void Block::report_foreign_mask(const Thread& thread) {
  fail(describe(thread) + ": the mask " + hexadecimal(thread.arrival.mask) + " of " +
       name_of(thread.arrival.kind) + told(thread.arrival.site) + " lacks the caller's own lane");
}

// No thread can run and the block cannot go on: some wait for what will not come.
void Block::report_deadlock() {
  for (Thread& thread : threads_)
    if (thread.state == State::at_warp) return fail("deadlock: " + why_stuck(thread));
  report_divergent_barrier();
}

// All that are left wait in barriers, but not in the same one, or others have gone home.
void Block::report_divergent_barrier() {
  auto waits = [](const Thread& thread) { return thread.state == State::at_barrier; };
  const Thread& first = *std::find_if(threads_.begin(), threads_.end(), waits);
  std::string report = "divergent barrier: " + describe(first) + " waits in " +
                       name_of(first.arrival.kind) + told(first.arrival.site) + ", ";
  for (const Thread& other : threads_) {
    if (!waits(other)) return fail(report + "but " + describe(other) + " has exited");
    if (!same_call(other.arrival, first.arrival))
      return fail(report + describe(other) + " in " + name_of(other.arrival.kind) +
                  told(other.arrival.site));
  }
}

std::string Block::why_stuck(const Thread& thread) {
  std::string mask = hexadecimal(thread.arrival.mask);
  std::string report = describe(thread) + " waits in " + name_of(thread.arrival.kind) + " (mask " +
                       mask + ")" + told(thread.arrival.site) + "; lane ";
  std::span<Thread> warp = warp_of(thread);
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (!(thread.arrival.mask >> lane & 1u)) continue;
    std::string number = std::to_string(lane);
    if (lane >= warp.size()) return report + number + " does not exist";
    const Thread& other = warp[lane];
    if (other.state == State::done) return report + number + " has exited";
    if (other.state == State::at_barrier)
      return report + number + " is in " + name_of(other.arrival.kind) + told(other.arrival.site);
    if (!same_call(other.arrival, thread.arrival))
      return report + number + " is in " + name_of(other.arrival.kind) + " (mask " +
             hexadecimal(other.arrival.mask) + ")" + told(other.arrival.site);
  }
  return report + "of another call";
}

std::string Block::describe(const Thread& thread) const {
  return "block " + listed(index_) + " thread " + listed(thread.index);
}

// --- what kernels call ---------------------------------------------------------------------------

uint3 thread_index() { return in_progress->current().index; }

uint3 block_index() { return in_progress->index(); }

dim3 block_size() { return in_progress->launch().block; }

dim3 grid_size() { return in_progress->launch().grid; }

int lane() { return int(in_progress->current().id % kWarpSize); }

uint64_t meet_block(Collective kind, bool predicate, Site site) {
  return in_progress->meet(State::at_barrier, {kind, 0, predicate, 0, site});
}

uint64_t meet_warp(Collective kind, unsigned mask, uint64_t value, int source, Site site) {
  return in_progress->meet(State::at_warp, {kind, mask, value, source, site});
}

void fence() { in_progress->current().fences.fence(); }

void before_atomic(void* address) { in_progress->before_atomic(address); }

}  // namespace cuda_on_cpu
