// How lists of tensors become chunks, blocks and launches: host code, before any kernel runs.
#include "cases.h"
#include "chunks.h"
#include "cuda/parcel.h"

namespace {

using namespace salun;

struct Sized {
  int64_t numel;
};

std::vector<Sized> sized(const std::vector<int64_t>& numels) {
  std::vector<Sized> list;
  for (int64_t numel : numels) list.push_back({numel});
  return list;
}

// Walks all chunks as `blocks` blocks would, each in strides of the grid, and checks that every
// element of every tensor is met exactly once and in order.
void check_chunks(const std::vector<int64_t>& numels, int64_t chunk, int64_t blocks) {
  std::vector<int64_t> first = first_chunks(sized(numels), chunk);
  std::vector<std::vector<int64_t>> begins(numels.size());
  std::string what = "chunks of " + std::to_string(numels.size()) + " tensors";
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t index = block; index < first.back(); index += blocks) {
      int64_t tensor = owner_of(first.data(), int64_t(numels.size()), index);
      expect(first[tensor] <= index && index < first[tensor + 1], what + ": the owner");
      begins[tensor].push_back((index - first[tensor]) * chunk);
    }
  for (size_t t = 0; t < numels.size(); ++t) {
    std::sort(begins[t].begin(), begins[t].end());
    expect(int64_t(begins[t].size()) == (numels[t] + chunk - 1) / chunk, what + ": how many");
    for (size_t i = 0; i < begins[t].size(); ++i)
      expect(begins[t][i] == int64_t(i) * chunk && begins[t][i] < numels[t], what + ": begins");
  }
}

// Tensors of more than 2^31 and 2^40 elements: only the ends are looked at.
void check_huge(int64_t chunk) {
  const int64_t huge = (int64_t(1) << 40) + 5;
  std::vector<int64_t> numels = {0, huge, 0, (int64_t(1) << 31) + 1, 0};
  std::vector<int64_t> first = first_chunks(sized(numels), chunk);
  expect(owner_of(first.data(), 5, 0) == 1, "huge: the first chunk");
  expect(owner_of(first.data(), 5, huge / chunk) == 1, "huge: the last chunk of the first");
  expect(owner_of(first.data(), 5, huge / chunk + 1) == 3, "huge: the first of the second");
  expect(owner_of(first.data(), 5, first.back() - 1) == 3, "huge: the last of all");
  expect((first.back() - 1 - first[3]) * chunk == int64_t(1) << 31, "huge: where it begins");
}

// What goes into kernel arguments arrives whole, in order, and never above the limit.
void check_parcels(int64_t quads, int64_t per_parcel) {
  int64_t sent = 0, parcels = 0;
  cuda::in_parcels(quads, per_parcel, [&](int64_t first, int64_t count) {
    expect(first == sent && count >= 1 && count <= per_parcel, "parcels: one after the other");
    sent += count;
    ++parcels;
  });
  expect(sent == quads, "parcels: everything is sent");
  expect(parcels == (quads + per_parcel - 1) / per_parcel, "parcels: no more than needed");
}

}  // namespace

void plan_cases() {
  for (const auto& sizes : kLists)
    for (int64_t chunk : {1024, 4096})
      for (int64_t blocks : {1, 3, 1000}) check_chunks(sizes, chunk, blocks);
  check_chunks(std::vector<int64_t>(686, 320), 4096, 132);
  check_huge(4096);
  for (int64_t quads : {0, 1, 254, 255, 256, 2047, 4094, 9999})
    for (int64_t limit : {1, 255, 2046}) check_parcels(quads, limit);
  // Beside a pointer and a count, an argument list of 4 KB or 32,764 bytes must not overflow.
  expect(sizeof(cuda::Parcel<4096>) + 16 <= 4096, "parcels: 4 KB");
  expect(sizeof(cuda::Parcel<32764>) + 16 <= 32764, "parcels: 32,764 bytes");
}
