// The dispatcher's shards, and which of them may have something to do: one flush of a broker that serves many looks at those
// that an event touched, not at all of them. Whoever gets a shard to change it touches it; one that waits for a time, or for
// others, is touched when that has come (Wake). So nothing that was changed can be overlooked. Not thread-safe.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"

namespace millrace {

template <class Shard>
class ShardTable {
  using Map = std::map<ShardId, Shard>;

 public:
  using Item = typename Map::value_type;
  // What a shard that nobody touches waits for.
  struct Wait {
    std::optional<WallTime> due;
    bool always = false;  // something else: it is looked at in every flush
  };

  Shard& operator[](ShardId id) {
    const auto [at, fresh] = shards_.try_emplace(id);
    if (fresh) waits_.push_back({&*at, Wait{}});
    if (id.value() >= is_touched_.size()) is_touched_.resize(id.value() + std::size_t{1});
    Touch(*at);
    return at->second;
  }
  Shard& at(ShardId id) {
    Item& item = *shards_.find(id);
    Touch(item);
    return item.second;
  }
  const Shard& at(ShardId id) const { return shards_.at(id); }
  auto find(ShardId id) {
    const auto it = shards_.find(id);
    if (it != shards_.end()) Touch(*it);
    return it;
  }
  auto find(ShardId id) const { return shards_.find(id); }
  auto begin() {
    for (Item& item : shards_) Touch(item);
    return shards_.begin();
  }
  auto end() { return shards_.end(); }
  auto begin() const { return shards_.begin(); }
  auto end() const { return shards_.end(); }

  // Touches what waits for `now` or for something that only a look can tell.
  void Wake(WallTime now) {
    for (const auto& [item, wait] : waits_)
      if (wait.always || (wait.due && *wait.due <= now)) Touch(*item);
  }
  // Those that were touched since the last Rest, by their ids. Valid until another one is touched.
  const std::vector<Item*>& Touched() const { return touched_; }
  // Nothing is left to do for those that were touched, until what `wait_of` says of them.
  template <class WaitOf>
  void Rest(WaitOf wait_of) {
    for (auto& [item, wait] : waits_)
      if (IsTouched(*item)) wait = wait_of(std::as_const(item->second));
    for (const Item* item : touched_) is_touched_[item->first.value()] = false;
    touched_.clear();
  }
  // The earliest time that any of them waits for.
  template <class WaitOf>
  std::optional<WallTime> NextDue(WaitOf wait_of) const {
    std::optional<WallTime> due;
    for (const auto& [item, wait] : waits_) {
      const auto at = IsTouched(*item) ? wait_of(std::as_const(item->second)).due : wait.due;
      if (at && (!due || *at < *due)) due = at;
    }
    return due;
  }

 private:
  bool IsTouched(const Item& item) const { return is_touched_[item.first.value()]; }
  void Touch(Item& item) {
    if (IsTouched(item)) return;
    is_touched_[item.first.value()] = true;
    touched_.insert(std::ranges::lower_bound(touched_, item.first, {}, [](const Item* other) { return other->first; }), &item);
  }

  Map shards_;
  std::vector<std::pair<Item*, Wait>> waits_;
  std::vector<Item*> touched_;
  std::vector<bool> is_touched_;  // by id
};

}  // namespace millrace
