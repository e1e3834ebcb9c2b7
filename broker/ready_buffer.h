// Jobs of `durability: redis` that are ready and wait in their owner's memory. For the queue they are in flight from the moment
// they are put, so a worker that can take one gets it without another round trip; when their owner dies, whoever takes the
// shard finds them there, like everything in flight. Those of one line are older than whatever of it waits in the queue: the
// dispatcher buffers a job only behind others of the buffer, or where its line is empty (dispatcher_buffer.cc).
//
// A job that waits is the entry that the queue has of it, some 100 bytes and its payload in one piece, and not a specification,
// which is ten times as much: by the time its turn comes it is in no cache.
//
// Bounded by number and bytes, whatever the number of shards (the dispatcher asks for Room; what comes back from a worker's
// credit has to go in all the same). The lists are in the lines of the index (LineIndex::Line::buffered), because who looks
// for a job has the line in hand. Not thread-safe: owned by the dispatcher.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/model/job.h"

namespace millrace {

inline constexpr std::size_t kBufferedJobsMax = 131'072;
inline constexpr std::size_t kBufferedBytesMax = 32u << 20;    // entries
inline constexpr std::size_t kBufferedPayloadMax = 64u << 10;  // of one job
// When a line goes back to the queue: where room gets scarce, and in any case (in flight it shares blocks with others, which
// stay as long as it does).
inline constexpr auto kBufferedAgeMax = std::chrono::seconds{10}, kBufferedAgeAnyMax = std::chrono::seconds{60};
inline constexpr std::size_t kPagedJobsMax = 2'048;  // so many of them at once
inline constexpr std::size_t kStartAheadMax = 16;    // jobs of a shard that start before the queue has answered their put

class ReadyBuffer {
 public:
  struct Job {
    JobId id;
    // Its entry (EncodeEntry); or, where it is likely to start at once, the specification of a job that never ran.
    std::variant<std::string, std::shared_ptr<const JobSpec>> content;
    std::uint64_t put = 0;  // which of the shard's puts has it: it starts when that is answered, or ahead; 0: an earlier one
    MonoTime since{};
  };
  // Those of one line, in order. They leave the buffer before it goes.
  class List {
   public:
    std::uint32_t count() const { return count_; }

   private:
    friend class ReadyBuffer;
    std::uint32_t front_ = UINT32_MAX, back_ = UINT32_MAX, count_ = 0;
  };

  bool Room(std::size_t payload_bytes) const {
    return jobs_ < kBufferedJobsMax && payload_bytes <= kBufferedPayloadMax && bytes_ + payload_bytes <= kBufferedBytesMax;
  }
  bool Empty() const { return jobs_ == 0; }
  std::size_t bytes() const { return bytes_; }
  std::size_t size() const { return jobs_; }  // NOLINT(readability-identifier-naming): as a container's

  // To the end of its line, or to its front. Whether there is Room is the caller's to ask. REQUIRES: content.
  void Push(List& line, Job job, bool front);
  Job TakeFront(List& line);  // REQUIRES: line.count() > 0
  // The first `most` of the line, or the last; all, when it has no more. In order.
  std::vector<Job> TakeFirst(List& line, std::size_t most);
  std::vector<Job> TakeLast(List& line, std::size_t most);
  // Those that `wanted(const Job&)` names leave it.
  template <class Wanted>
  std::vector<Job> TakeIf(List& line, Wanted wanted);
  template <class Visit>
  void ForEach(const List& line, Visit visit) const {  // visit(const Job&), in order
    for (std::uint32_t at = line.front_; at != kNone; at = nodes_[at].next) visit(nodes_[at].job);
  }
  // Whether the front of the line was put before `time`.
  bool WaitsSince(const List& line, MonoTime time) const { return line.count_ > 0 && nodes_[line.front_].job.since < time; }

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  struct Node {
    Job job;
    std::uint32_t next = kNone, previous = kNone;
  };
  std::vector<Job> TakeFrom(std::uint32_t List::* end, List& line, std::size_t most);
  Job Unlink(List& line, std::uint32_t at);
  static std::size_t BytesOf(const Job& job);  // its texts of any length
  void ReleaseIfEmpty();

  std::vector<Node> nodes_;
  std::vector<std::uint32_t> free_;
  std::size_t jobs_ = 0, bytes_ = 0;
};

template <class Wanted>
std::vector<ReadyBuffer::Job> ReadyBuffer::TakeIf(List& line, Wanted wanted) {
  std::vector<Job> taken;
  for (std::uint32_t at = line.front_; at != kNone;) {
    const std::uint32_t next = nodes_[at].next;
    if (wanted(nodes_[at].job)) taken.push_back(Unlink(line, at));
    at = next;
  }
  ReleaseIfEmpty();
  return taken;
}

}  // namespace millrace
