#include "broker/ready_buffer.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace millrace {
namespace {

constexpr std::size_t kNodesKept = 4096;

}  // namespace

std::size_t ReadyBuffer::BytesOf(const Job& job) {
  if (const auto* entry = std::get_if<std::string>(&job.content)) return entry->size();
  const JobSpec& spec = *std::get<1>(job.content);
  std::size_t bytes = spec.payload.size() + spec.root.size() + spec.effect.size();
  for (const std::string& name : spec.options.no_retry) bytes += name.size();
  return bytes;
}

void ReadyBuffer::Push(List& line, Job job, bool front) {
  MILLRACE_CHECK(BytesOf(job) > 0 || job.content.index() == 1, "job {}: waits without its entry", job.id.ToString());
  ++jobs_;
  bytes_ += BytesOf(job);
  std::uint32_t at = static_cast<std::uint32_t>(nodes_.size());
  if (free_.empty()) {
    nodes_.emplace_back();
  } else {
    at = free_.back();
    free_.pop_back();
  }
  Node& node = nodes_[at];
  node.job = std::move(job);
  node.next = front ? line.front_ : kNone;
  node.previous = front ? kNone : line.back_;
  std::uint32_t& before = node.previous == kNone ? line.front_ : nodes_[node.previous].next;
  std::uint32_t& after = node.next == kNone ? line.back_ : nodes_[node.next].previous;
  before = after = at;
  ++line.count_;
}

ReadyBuffer::Job ReadyBuffer::Unlink(List& line, std::uint32_t at) {
  Node& node = nodes_[at];
  (node.previous == kNone ? line.front_ : nodes_[node.previous].next) = node.next;
  (node.next == kNone ? line.back_ : nodes_[node.next].previous) = node.previous;
  --line.count_;
  --jobs_;
  bytes_ -= BytesOf(node.job);
  free_.push_back(at);
  return std::exchange(node.job, {});
}

ReadyBuffer::Job ReadyBuffer::TakeFront(List& line) {
  Job job = Unlink(line, line.front_);
  ReleaseIfEmpty();
  return job;
}

std::vector<ReadyBuffer::Job> ReadyBuffer::TakeFrom(std::uint32_t List::* end, List& line, std::size_t most) {
  std::vector<Job> jobs;
  jobs.reserve(std::min<std::size_t>(most, line.count_));
  while (line.count_ > 0 && jobs.size() < most) jobs.push_back(Unlink(line, line.*end));
  ReleaseIfEmpty();
  return jobs;
}

std::vector<ReadyBuffer::Job> ReadyBuffer::TakeFirst(List& line, std::size_t most) {
  return TakeFrom(&List::front_, line, most);
}

std::vector<ReadyBuffer::Job> ReadyBuffer::TakeLast(List& line, std::size_t most) {
  std::vector<Job> jobs = TakeFrom(&List::back_, line, most);
  std::ranges::reverse(jobs);
  return jobs;
}

// What held many is given back.
void ReadyBuffer::ReleaseIfEmpty() {
  if (jobs_ > 0 || nodes_.size() <= kNodesKept) return;
  nodes_ = {};
  free_ = {};
}

}  // namespace millrace
