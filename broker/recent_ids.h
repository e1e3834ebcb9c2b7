// Which ids came lately: a hint that a submit is repeated, 8 to 32 bytes per id. It may say "seen" of an id that is new (then
// somebody looks once more than needed), and forgets after one to two periods. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"

namespace millrace {

class RecentIds {
 public:
  explicit RecentIds(Micros period) : period_(period) {}

  // Whether it was seen; it is now.
  bool Seen(const Uuid& id, MonoTime now) {
    Forget(now);
    const std::uint64_t key = KeyOf(id);
    const bool older = older_.Has(key);
    return !newer_.Add(key) || older;
  }
  bool Has(const Uuid& id) const { return older_.Has(KeyOf(id)) || newer_.Has(KeyOf(id)); }
  // What is old goes, and its memory with it. For when nothing is asked.
  void Forget(MonoTime now) {
    if (now < turn_) return;
    older_ = now >= turn_ + period_ ? Set{} : std::exchange(newer_, Set{});
    newer_ = Set{};
    turn_ = now + period_;
  }
  std::size_t MemoryBytes() const { return (newer_.slots.capacity() + older_.slots.capacity()) * sizeof(std::uint64_t); }
  // For a batch: Seen of each does not wait for memory then.
  void Prefetch(const Uuid& id) const {
    for (const Set* set : {&older_, &newer_})
      if (!set->slots.empty()) __builtin_prefetch(&set->slots[set->Home(KeyOf(id))]);
  }

 private:
  static std::uint64_t KeyOf(const Uuid& id) {
    std::uint64_t key = 0;
    std::memcpy(&key, id.bytes.data() + 8, sizeof key);  // the random half
    return (key ^ (key >> 29)) * 0x9e3779b97f4a7c15ULL | 1;
  }
  struct Set {
    std::vector<std::uint64_t> slots;  // 0 = free; a power of two of them, at most half full
    std::size_t used = 0;
    std::size_t Home(std::uint64_t key) const { return (key >> 20) & (slots.size() - 1); }
    std::size_t Find(std::uint64_t key) const {
      const std::size_t mask = slots.size() - 1;
      std::size_t at = Home(key);
      while (slots[at] != 0 && slots[at] != key) at = (at + 1) & mask;
      return at;
    }
    bool Has(std::uint64_t key) const { return !slots.empty() && slots[Find(key)] == key; }
    bool Add(std::uint64_t key) {
      if (2 * (used + 1) > slots.size()) {
        Set larger;
        larger.slots.resize(std::max<std::size_t>(1024, slots.size() * 2));
        for (const std::uint64_t old : slots)
          if (old != 0) larger.slots[larger.Find(old)] = old;
        slots = std::move(larger.slots);
      }
      const std::size_t at = Find(key);
      if (slots[at] == key) return false;
      slots[at] = key;
      ++used;
      return true;
    }
  };
  Micros period_;
  MonoTime turn_{};
  Set newer_, older_;
};

}  // namespace millrace
