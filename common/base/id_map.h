// A hash map of things that are made and ended for every job, by UUID ids. Against the standard one: no allocation per element
// once it has grown, and a look touches two cache lines instead of a chain of nodes. It does not shrink. Not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/base/check.h"

namespace millrace {

// References to values stay valid until the value is erased. Iteration is in no useful order.
template <class Key, class Value>
class IdMap {
 public:
  using value_type = std::pair<const Key, Value>;

  template <bool kConst>
  class Iterator {
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = IdMap::value_type;
    using difference_type = std::ptrdiff_t;
    using reference = std::conditional_t<kConst, const value_type&, value_type&>;
    using pointer = std::conditional_t<kConst, const value_type*, value_type*>;
    using Map = std::conditional_t<kConst, const IdMap, IdMap>;

    Iterator() = default;
    Iterator(Map* map, std::uint32_t slot) : map_(map), slot_(slot) {}
    operator Iterator<true>() const { return {map_, slot_}; }
    reference operator*() const { return *map_->SlotAt(slot_); }
    pointer operator->() const { return &*map_->SlotAt(slot_); }
    Iterator& operator++() {
      slot_ = map_->UsedFrom(slot_ + 1);
      return *this;
    }
    Iterator operator++(int) { return std::exchange(*this, std::next(*this)); }
    friend bool operator==(const Iterator& a, const Iterator& b) { return a.slot_ == b.slot_; }

   private:
    friend class IdMap;
    Map* map_ = nullptr;
    std::uint32_t slot_ = 0;
  };
  using iterator = Iterator<false>;
  using const_iterator = Iterator<true>;

  iterator begin() { return {this, UsedFrom(0)}; }
  iterator end() { return {this, made_}; }
  const_iterator begin() const { return {this, UsedFrom(0)}; }
  const_iterator end() const { return {this, made_}; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  iterator find(const Key& key) {
    const std::size_t cell = Find(key, std::hash<Key>{}(key));
    return {this, cell == kNone ? made_ : SlotOf(cells_[cell])};
  }
  const_iterator find(const Key& key) const {
    const std::size_t cell = Find(key, std::hash<Key>{}(key));
    return {this, cell == kNone ? made_ : SlotOf(cells_[cell])};
  }
  bool contains(const Key& key) const { return Find(key, std::hash<Key>{}(key)) != kNone; }
  // REQUIRES: it is there.
  Value& at(const Key& key) {
    const iterator found = find(key);
    MILLRACE_CHECK(found != end(), "an id that must be in a map is not");
    return found->second;
  }
  const Value& at(const Key& key) const {
    const const_iterator found = find(key);
    MILLRACE_CHECK(found != end(), "an id that must be in a map is not");
    return found->second;
  }

  // For a loop over many ids that looks each of them up: call it before item `i`, and memory is not waited for.
  template <class Items, class KeyOf>
  void PrefetchAhead(const Items& items, std::size_t i, KeyOf key_of) const {
    constexpr std::size_t kCellsAhead = 16, kValuesAhead = 8;
    if (cells_.empty()) return;
    const std::size_t mask = cells_.size() - 1;
    const auto hash = [&](std::size_t at) { return std::hash<Key>{}(std::invoke(key_of, items[at])); };
    if (i + kCellsAhead < items.size()) __builtin_prefetch(&cells_[hash(i + kCellsAhead) & mask]);
    if (i + kValuesAhead >= items.size()) return;
    const Cell cell = cells_[hash(i + kValuesAhead) & mask];
    if (cell == 0) return;
    const char* value = reinterpret_cast<const char*>(&SlotAt(SlotOf(cell)));
    for (std::size_t at = 0; at < sizeof(Slot); at += 64) __builtin_prefetch(value + at);
  }

  // As std::unordered_map's: makes nothing when the key is there.
  template <class... Args>
  std::pair<iterator, bool> try_emplace(const Key& key, Args&&... args) {
    if (2 * (size_ + 1) > cells_.size()) Grow();
    const std::size_t hash = std::hash<Key>{}(key);
    if (const std::size_t cell = Find(key, hash); cell != kNone) return {iterator{this, SlotOf(cells_[cell])}, false};
    const std::uint32_t slot = FreeSlot();
    SlotAt(slot).emplace(std::piecewise_construct, std::forward_as_tuple(key),
                         std::forward_as_tuple(std::forward<Args>(args)...));
    Place(hash << 32 | (slot + 1));
    ++size_;
    return {iterator{this, slot}, true};
  }
  // No other iterator is made invalid; nor is there a next one, which would have to be looked for.
  void erase(iterator at) {
    const std::size_t mask = cells_.size() - 1;
    std::size_t hole = Find(at->first, std::hash<Key>{}(at->first));
    // What stands behind it moves up as far as its home allows, so that there are no tombstones.
    for (std::size_t next = (hole + 1) & mask; cells_[next] != 0; next = (next + 1) & mask) {
      if (((next - HashOf(cells_[next])) & mask) < ((next - hole) & mask)) continue;
      cells_[hole] = cells_[next];
      hole = next;
    }
    cells_[hole] = 0;
    SlotAt(at.slot_).reset();
    free_.push_back(at.slot_);
    --size_;
  }
  std::size_t erase(const Key& key) {
    const iterator found = find(key);
    if (found == end()) return 0;
    erase(found);
    return 1;
  }

 private:
  static constexpr std::size_t kNone = ~std::size_t{0};
  static constexpr std::size_t kChunk = 64;
  using Slot = std::optional<value_type>;
  using Chunk = std::array<Slot, kChunk>;
  // The lower half of the hash, where the probe begins, and the slot + 1.
  using Cell = std::uint64_t;

  static std::uint32_t SlotOf(Cell cell) { return static_cast<std::uint32_t>(cell) - 1; }
  static std::size_t HashOf(Cell cell) { return cell >> 32; }
  Slot& SlotAt(std::uint32_t slot) { return (*chunks_[slot / kChunk])[slot % kChunk]; }
  const Slot& SlotAt(std::uint32_t slot) const { return (*chunks_[slot / kChunk])[slot % kChunk]; }
  std::uint32_t UsedFrom(std::uint32_t slot) const {
    while (slot < made_ && !SlotAt(slot)) ++slot;
    return slot;
  }
  std::size_t Find(const Key& key, std::size_t hash) const {
    if (cells_.empty()) return kNone;
    const std::size_t mask = cells_.size() - 1;
    for (std::size_t at = hash & mask; cells_[at] != 0; at = (at + 1) & mask)
      if (HashOf(cells_[at]) == (hash & UINT32_MAX) && SlotAt(SlotOf(cells_[at]))->first == key) return at;
    return kNone;
  }
  void Place(Cell cell) {
    const std::size_t mask = cells_.size() - 1;
    std::size_t at = HashOf(cell) & mask;
    while (cells_[at] != 0) at = (at + 1) & mask;
    cells_[at] = cell;
  }
  void Grow() {
    for (const Cell cell : std::exchange(cells_, std::vector<Cell>(std::max<std::size_t>(64, 2 * cells_.size()))))
      if (cell != 0) Place(cell);
  }
  std::uint32_t FreeSlot() {
    if (!free_.empty()) {
      const std::uint32_t slot = free_.back();
      free_.pop_back();
      return slot;
    }
    if (made_ % kChunk == 0) chunks_.push_back(std::make_unique<Chunk>());
    return made_++;
  }

  std::vector<Cell> cells_;  // a power of two of them, at most half of them used; 0 = free
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::vector<std::uint32_t> free_;
  std::uint32_t made_ = 0;  // slots there are, used or free
  std::size_t size_ = 0;
};

}  // namespace millrace
