// The lines that have something ready, and which of them a worker gets next: strictly by priority, then round robin over
// orgs, then over the lines of the org. Counts only; the entries are in the queue. Not thread-safe: owned by the dispatcher.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/base/result.h"
#include "common/model/job.h"

namespace millrace {

// What makes two jobs wait in the same FIFO. `kind` is part of it: a line is claimed as a whole, so every job of a line must
// be one that the same workers can run.
struct LineKey {
  std::string queue;
  int priority = kPriorityDefault;
  OrgId org = kDefaultOrg;
  std::string root;
  std::string kind;
  Durability durability = Durability::kLedger;  // kRedis: the queue keeps the line over a takeover (IsKeptLine)
  static LineKey Of(const JobSpec& spec);       // of ledger class
  std::string ToString() const;
  static Result<LineKey> Parse(std::string_view text);  // kCorrupt: not what ToString made
  friend bool operator==(const LineKey&, const LineKey&) = default;
};

// The line of the job before is mostly the line of the next one too. Not thread-safe.
class LineMemo {
 public:
  void Find(const JobSpec& spec, Durability durability);  // then key() and name() are those of the job's line
  const LineKey& key() const { return key_; }
  const std::string& name() const { return name_; }

 private:
  LineKey asked_, key_;
  std::string name_;
};

struct WorkerReach {  // empty = all
  std::vector<std::string> queues, kinds, roots;
  bool Serves(const LineKey& line) const;
  bool Covers(std::string_view root) const;  // an empty root is reached by all
};

class LineIndex {
 public:
  struct Line {
    ShardId shard;
    std::string name;  // LineKey::ToString()
    LineKey key;
    std::uint64_t ready = 0;                 // entries that are in the queue and not promised to a claim
    std::optional<MonoTime> unserved_since;  // kept by the dispatcher
    bool warned = false;
  };

  // Adds `n` ready entries. `name` must be LineKey::ToString() of a valid key; others are ignored.
  void Add(ShardId shard, const std::string& name, std::uint64_t n);
  // The line that `worker` should be given next, or nullptr. Moves its org and the line to the end of their rounds.
  Line* Next(const WorkerReach& worker);
  // REQUIRES: n <= line.ready. `line` is gone when nothing is left.
  void Take(Line& line, std::uint64_t n);
  // How many orgs have something ready at the line's priority.
  std::size_t OrgsBeside(const Line& line) const { return rounds_[RoundOf(line.key)].orgs.size(); }
  // Every line that has something ready. `visit` must not change the index.
  template <class Visit>
  void ForEachReady(Visit visit) {
    for (auto& [key, line] : lines_)
      if (line->ready > 0) visit(*line);
  }
  void DropShard(ShardId shard);
  bool Empty() const { return total_ready_ == 0; }
  std::uint64_t Ready(ShardId shard) const;

 private:
  struct Org {
    OrgId org;
    std::list<Line*> lines;
  };
  struct Round {
    std::list<Org> orgs;
  };
  static std::size_t RoundOf(const LineKey& key);
  void Link(Line* line);
  void Unlink(Line* line);

  std::map<std::pair<ShardId, std::string>, std::unique_ptr<Line>, std::less<>> lines_;
  std::array<Round, kPriorityLevels> rounds_;
  std::uint64_t total_ready_ = 0;
};

}  // namespace millrace
