// Hash map and hash set of things that are made and ended for every job, by UUID ids. Against the standard ones: no
// allocation per element once they have grown, and a look touches one or two cache lines instead of a chain of nodes. They do
// not shrink. Not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
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
namespace id_map_detail {

// Open addressing with linear probing, at most half full. A cell is 0 when it is free. `home_of(cell)` is where its probe
// begins; whoever erases moves back what follows, so that there are no tombstones.
template <class Cell, class HomeFn>
void EraseCell(std::vector<Cell>& cells, std::size_t at, HomeFn home_of) {
  const std::size_t mask = cells.size() - 1;
  for (std::size_t next = (at + 1) & mask; !(cells[next] == Cell{}); next = (next + 1) & mask) {
    const std::size_t home = home_of(cells[next]) & mask;
    if (((next - home) & mask) < ((next - at) & mask)) continue;  // it would stand before its home
    cells[at] = cells[next];
    at = next;
  }
  cells[at] = Cell{};
}

}  // namespace id_map_detail

// References to values stay valid until the value is erased. Iteration is in no useful order; erasing what an iterator stands
// on leaves the others valid.
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
  const Value& at(const Key& key) const { return const_cast<IdMap*>(this)->at(key); }

  // As std::unordered_map's: makes nothing when the key is there.
  template <class... Args>
  std::pair<iterator, bool> try_emplace(const Key& key, Args&&... args) {
    if (2 * (size_ + 1) > cells_.size()) Grow();
    const std::size_t hash = std::hash<Key>{}(key);
    if (const std::size_t cell = Find(key, hash); cell != kNone) return {iterator{this, SlotOf(cells_[cell])}, false};
    const std::uint32_t slot = FreeSlot();
    SlotAt(slot).emplace(std::piecewise_construct, std::forward_as_tuple(key),
                         std::forward_as_tuple(std::forward<Args>(args)...));
    Place(hash, slot);
    ++size_;
    return {iterator{this, slot}, true};
  }
  std::pair<iterator, bool> insert_or_assign(const Key& key, Value value) {
    const auto made = try_emplace(key, std::move(value));
    if (!made.second) made.first->second = std::move(value);  // NOLINT(bugprone-use-after-move): try_emplace left it
    return made;
  }
  // Returns the iterator behind it.
  iterator erase(iterator at) {
    const std::size_t cell = Find(at->first, std::hash<Key>{}(at->first));
    id_map_detail::EraseCell(cells_, cell, [this](Cell c) { return std::hash<Key>{}(SlotAt(SlotOf(c))->first); });
    SlotAt(at.slot_).reset();
    free_.push_back(at.slot_);
    --size_;
    return {this, UsedFrom(at.slot_ + 1)};
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
  using Cell = std::uint64_t;  // the upper half of the hash, and the slot + 1

  static std::uint32_t SlotOf(Cell cell) { return static_cast<std::uint32_t>(cell) - 1; }
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
      if (cells_[at] >> 32 == hash >> 32 && SlotAt(SlotOf(cells_[at]))->first == key) return at;
    return kNone;
  }
  void Place(std::size_t hash, std::uint32_t slot) {
    const std::size_t mask = cells_.size() - 1;
    std::size_t at = hash & mask;
    while (cells_[at] != 0) at = (at + 1) & mask;
    cells_[at] = (hash >> 32 << 32) | (slot + 1);
  }
  void Grow() {
    cells_.assign(std::max<std::size_t>(64, 2 * cells_.size()), 0);
    for (std::uint32_t slot = UsedFrom(0); slot < made_; slot = UsedFrom(slot + 1))
      Place(std::hash<Key>{}(SlotAt(slot)->first), slot);
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

  std::vector<Cell> cells_;  // a power of two of them
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::vector<std::uint32_t> free_;
  std::uint32_t made_ = 0;  // slots there are, used or free
  std::size_t size_ = 0;
};

// A set of ids none of which is nil. Any change makes iterators invalid.
template <class Key>
class IdSet {
 public:
  class const_iterator {
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = Key;
    using difference_type = std::ptrdiff_t;
    using reference = const Key&;
    using pointer = const Key*;

    const_iterator() = default;
    const_iterator(const Key* at, const Key* end) : at_(at), end_(end) { Skip(); }
    reference operator*() const { return *at_; }
    pointer operator->() const { return at_; }
    const_iterator& operator++() {
      ++at_;
      Skip();
      return *this;
    }
    const_iterator operator++(int) { return std::exchange(*this, std::next(*this)); }
    friend bool operator==(const const_iterator& a, const const_iterator& b) { return a.at_ == b.at_; }

   private:
    void Skip() {
      while (at_ != end_ && *at_ == Key{}) ++at_;
    }
    const Key* at_ = nullptr;
    const Key* end_ = nullptr;
  };

  const_iterator begin() const { return {cells_.data(), cells_.data() + cells_.size()}; }
  const_iterator end() const { return {cells_.data() + cells_.size(), cells_.data() + cells_.size()}; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  bool contains(const Key& key) const { return !cells_.empty() && cells_[Find(key)] == key; }
  // Whether it is new.
  bool insert(const Key& key) {
    MILLRACE_CHECK(!(key == Key{}), "a set of ids does not take a nil one");
    if (2 * (size_ + 1) > cells_.size()) Grow();
    const std::size_t at = Find(key);
    if (cells_[at] == key) return false;
    cells_[at] = key;
    ++size_;
    return true;
  }
  std::size_t erase(const Key& key) {
    if (cells_.empty()) return 0;
    const std::size_t at = Find(key);
    if (!(cells_[at] == key)) return 0;
    id_map_detail::EraseCell(cells_, at, std::hash<Key>{});
    --size_;
    return 1;
  }

 private:
  std::size_t Find(const Key& key) const {  // where it is, or would be
    const std::size_t mask = cells_.size() - 1;
    std::size_t at = std::hash<Key>{}(key)&mask;
    while (!(cells_[at] == Key{}) && !(cells_[at] == key)) at = (at + 1) & mask;
    return at;
  }
  void Grow() {
    const std::vector<Key> old = std::exchange(cells_, std::vector<Key>(std::max<std::size_t>(16, 2 * cells_.size())));
    for (const Key& key : old)
      if (!(key == Key{})) cells_[Find(key)] = key;
  }

  std::vector<Key> cells_;  // a power of two of them
  std::size_t size_ = 0;
};

}  // namespace millrace
