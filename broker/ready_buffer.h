// Jobs of `durability: redis` that are ready and wait in their owner's memory. For the queue they are in flight from the moment
// they are put, so a worker that can take one gets it without another round trip; when their owner dies, whoever takes the
// shard finds them there, like everything in flight. Those of one line are older than whatever of it waits in the queue: the
// dispatcher buffers a job only behind others of the buffer, or where its line is empty (dispatcher_buffer.cc).
//
// A job that waits is the entry that the queue has of it, some 100 bytes and its payload in one piece, and not a specification,
// which is ten times as much: by the time its turn comes it is in no cache.
//
// Bounded by number and bytes, whatever the number of shards (the dispatcher asks for Room; what comes back from a worker's
// credit has to go in all the same). Not thread-safe: owned by the dispatcher.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/model/job.h"

namespace millrace {

inline constexpr std::size_t kBufferedJobsMax = 131'072;
inline constexpr std::size_t kBufferedBytesMax = 32u << 20;        // entries
inline constexpr std::size_t kBufferedPayloadMax = 64u << 10;      // of one job
inline constexpr auto kBufferedAgeMax = std::chrono::seconds{10};  // a line goes back to the queue, when room gets scarce
inline constexpr std::size_t kPagedJobsMax = 2'048;                // so many of them at once

class ReadyBuffer {
 public:
  struct Job {
    JobId id;
    // Its entry (EncodeEntry); or, where it is likely to start at once, the specification of a job that never ran.
    std::variant<std::string, std::shared_ptr<const JobSpec>> content;
    std::uint64_t put = 0;  // which of the shard's puts has it: it may start when that is answered; 0: an earlier one had it
    MonoTime since{};
  };
  using LineName = std::pair<ShardId, std::string>;

  bool Room(std::size_t payload_bytes) const {
    return jobs_ < kBufferedJobsMax && payload_bytes <= kBufferedPayloadMax && bytes_ + payload_bytes <= kBufferedBytesMax;
  }
  bool Empty() const { return jobs_ == 0; }
  std::size_t bytes() const { return bytes_; }
  std::size_t size() const { return jobs_; }  // NOLINT(readability-identifier-naming): as a container's
  std::size_t Count(ShardId shard, std::string_view line);

  // To the end of its line, or to its front. Whether there is Room is the caller's to ask. REQUIRES: content.
  void Push(ShardId shard, const std::string& line, Job job, bool front);
  // The first `most` of the line, or the last; all, when it has no more. In order.
  std::vector<Job> TakeFirst(ShardId shard, std::string_view line, std::size_t most);
  std::vector<Job> TakeLast(ShardId shard, std::string_view line, std::size_t most);
  // Those of the shard that `wanted(JobId, line)` names leave it, each with its line.
  template <class Wanted>
  std::vector<std::pair<std::string, Job>> TakeIf(ShardId shard, Wanted wanted);

  // Lines in the order of their names: of one shard; and those the front of which was put before `before`.
  std::vector<LineName> LinesOf(ShardId shard) const;
  std::vector<LineName> LinesBefore(MonoTime before) const;
  void DropShard(ShardId shard);

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  struct Node {
    Job job;
    std::uint32_t next = kNone, previous = kNone;
  };
  struct Line {
    std::uint32_t front = kNone, back = kNone;
    std::uint32_t count = 0;
  };
  struct NameHash {
    using is_transparent = void;
    template <class Name>
    std::size_t operator()(const Name& of) const {
      return std::hash<std::string_view>{}(of.second) ^ (of.first.value() * std::size_t{0x9e3779b97f4a7c15});
    }
  };
  struct NameEqual {
    using is_transparent = void;
    template <class A, class B>
    bool operator()(const A& a, const B& b) const {
      return a.first == b.first && std::string_view{a.second} == std::string_view{b.second};
    }
  };
  using Lines = std::unordered_map<LineName, Line, NameHash, NameEqual>;

  bool IsLast(ShardId shard, std::string_view line) const {
    return last_ != nullptr && last_->first.first == shard && last_->first.second == line;
  }
  std::vector<Job> TakeFrom(std::uint32_t Line::* end, ShardId shard, std::string_view name, std::size_t most);
  Job Unlink(Line& line, std::uint32_t at);
  static std::size_t BytesOf(const Job& job);  // its texts of any length
  void ReleaseIfEmpty();

  Lines lines_;
  Lines::value_type* last_ = nullptr;  // that was counted: what is pushed next is mostly of the same
  std::vector<Node> nodes_;
  std::vector<std::uint32_t> free_;
  std::size_t jobs_ = 0, bytes_ = 0;
};

template <class Wanted>
std::vector<std::pair<std::string, ReadyBuffer::Job>> ReadyBuffer::TakeIf(ShardId shard, Wanted wanted) {
  std::vector<std::pair<std::string, Job>> taken;
  last_ = nullptr;
  for (auto it = lines_.begin(); it != lines_.end();) {
    auto& [name, line] = *it;
    if (name.first == shard) {
      for (std::uint32_t at = line.front; at != kNone;) {
        const std::uint32_t next = nodes_[at].next;
        if (wanted(nodes_[at].job.id, name.second)) taken.emplace_back(name.second, Unlink(line, at));
        at = next;
      }
    }
    it = line.count == 0 ? lines_.erase(it) : std::next(it);
  }
  return taken;
}

}  // namespace millrace
