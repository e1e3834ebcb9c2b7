// Which jobs of `durability: redis` have gone from the broker's memory back into the queue since clients began to look through
// it, page by page (dispatcher_list.cc). What is out of its line while a page is at it, and back in it before the next one,
// is in no page. One record for all looks of a shard; it ends when none went on for a while, or when it is full, and a look
// that counted on it begins again. Not thread-safe: part of a shard's state.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/queue/job_queue.h"

namespace millrace {

inline constexpr std::size_t kKeptRecordJobsMax = 200'000;         // more than the ready buffer has
inline constexpr auto kKeptRecordIdle = std::chrono::seconds{60};  // between two pages of one look
inline constexpr std::size_t kListOwnJobsMax = 50'000;             // of the broker's memory, in one page of the answer

class KeptRecord {
 public:
  // A look begins or goes on. Its number is that of the record that it counts on.
  std::uint64_t Use(MonoTime now);
  bool Has(std::uint64_t number) const { return on_ && number == number_; }
  void Back(std::span<const QueueEntry> entries);  // those of kept lines count
  void End();
  void EndIfIdle(MonoTime now) {
    if (on_ && idle_at_ <= now) End();
  }
  template <class Visit>
  void ForEach(Visit visit) const {  // visit(line, id)
    for (const auto& [line, ids] : lines_)
      for (const JobId& id : ids) visit(line, id);
  }

 private:
  bool on_ = false;
  std::uint64_t number_ = 0;
  MonoTime idle_at_{};
  std::unordered_map<std::string, std::unordered_set<JobId>> lines_;
  std::size_t jobs_ = 0;
};

// Where a look goes on, as its cursor says it: in the queue, or behind a job of those that the broker has in its memory.
struct KeptPlace {
  Epoch epoch;
  std::uint64_t record = 0;
  std::optional<JobId> after;  // unset: in the queue
  std::string queue;           // its cursor; empty: from the beginning
  std::string ToString() const;
  static std::optional<KeptPlace> Parse(std::string_view text);  // nothing: not what ToString made
};

}  // namespace millrace
