// Which entries of a shard's kept lines are in flight, as far as this process claimed them since it took the shard. What was
// claimed as a block lies in Redis as one value; this says which block an id is in, so that its end takes a mark instead of a
// field of its own. Not thread-safe.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/base/id_map.h"
#include "common/base/ids.h"

namespace millrace {

class RedisFlight {
 public:
  // What is to be written when ids leave the flight, as arguments of the queue's script.
  struct Landing {
    std::vector<std::string> ids;    // have a field of their own, or are not known here
    std::vector<std::string> over;   // fields that go: nothing of their blocks is left
    std::vector<std::string> marks;  // field and value for the others: 'x' for each entry that has left, else '.'
  };

  // The parts of a block's name, which no other block has: the epoch, and a number that increases.
  static std::string EpochName(Epoch epoch) { return fmt::format("{:010}", epoch.value()); }
  static std::string NumberName(std::uint64_t number) { return fmt::format("{:012}", number); }

  void Claimed(JobId id) {
    const auto [at, fresh] = places_.try_emplace(id);
    at->second.own = true;  // beside its entry in a block, when it was put in twice
  }
  void ClaimedBlock(const std::string& name, const std::vector<JobId>& ids) {
    const auto block = blocks_.insert_or_assign(name, Block{.marks = std::string(ids.size(), '.'), .left = ids.size()}).first;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      places_.PrefetchAhead(ids, i, std::identity{});
      Place place{.block = &block->second, .name = &block->first, .position = i, .own = false};
      if (!places_.try_emplace(ids[i], place).second) Leave(place);  // put in twice: its other entry stands for both
    }
  }
  // They are not in flight after all: what was to put them there was refused.
  void Forget(JobId id) {
    const auto at = places_.find(id);
    if (at == places_.end()) return;
    at->second.own = false;
    if (at->second.block == nullptr) places_.erase(at);
  }
  void ForgetBlock(const std::string& name, const std::vector<JobId>& ids) {
    for (const JobId& id : ids)
      if (const auto at = places_.find(id); at != places_.end() && at->second.block != nullptr && *at->second.name == name)
        places_.erase(at);
    blocks_.erase(name);
    std::erase(changed_, name);
  }
  // The ids of `items` leave the flight, all of one operation.
  template <class Items, class IdOf>
  Landing Land(const Items& items, IdOf id_of) {
    Landing landing;
    for (std::size_t i = 0; i < items.size(); ++i) {
      places_.PrefetchAhead(items, i, id_of);
      const JobId& id = std::invoke(id_of, items[i]);
      const auto at = places_.find(id);
      if (at == places_.end() || at->second.own) landing.ids.emplace_back(id.AsBytes());
      if (at == places_.end()) continue;
      Leave(at->second);
      places_.erase(at);
    }
    for (const std::string& name : std::exchange(changed_, {})) {
      const auto block = blocks_.find(name);
      block->second.changed = false;
      if (block->second.left > 0) {
        landing.marks.push_back("D" + name);
        landing.marks.push_back(block->second.marks);
      } else {
        for (const char* field : {"B", "D", "L"}) landing.over.push_back(field + name);
        blocks_.erase(block);
      }
    }
    return landing;
  }

 private:
  struct Block {
    std::string marks;
    std::size_t left = 0;
    bool changed = false;
  };
  struct Place {
    Block* block = nullptr;
    const std::string* name = nullptr;
    std::size_t position = 0;
    bool own = false;  // it has a field of its own
  };
  void Leave(Place& place) {
    if (place.block == nullptr) return;
    place.block->marks[place.position] = 'x';
    --place.block->left;
    if (!std::exchange(place.block->changed, true)) changed_.push_back(*place.name);
    place.block = nullptr;
  }

  IdMap<JobId, Place> places_;
  std::map<std::string, Block> blocks_;
  std::vector<std::string> changed_;  // names
};

}  // namespace millrace
