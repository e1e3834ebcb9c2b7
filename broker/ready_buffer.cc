#include "broker/ready_buffer.h"

#include <algorithm>

#include "common/base/check.h"

namespace millrace {
namespace {

constexpr std::size_t kNodesKept = 4096;

}  // namespace

std::size_t ReadyBuffer::Count(ShardId shard, std::string_view line) {
  if (jobs_ == 0) return 0;
  if (IsLast(shard, line)) return last_->second.count;
  const auto it = lines_.find(std::pair{shard, line});
  if (it == lines_.end()) return 0;
  last_ = &*it;
  return it->second.count;
}

std::size_t ReadyBuffer::BytesOf(const Job& job) {
  if (const auto* entry = std::get_if<std::string>(&job.content)) return entry->size();
  const JobSpec& spec = *std::get<1>(job.content);
  std::size_t bytes = spec.payload.size() + spec.root.size() + spec.effect.size();
  for (const std::string& name : spec.options.no_retry) bytes += name.size();
  return bytes;
}

void ReadyBuffer::Push(ShardId shard, const std::string& name, Job job, bool front) {
  MILLRACE_CHECK(BytesOf(job) > 0 || job.content.index() == 1, "line '{}': a job without its entry", name);
  if (!IsLast(shard, name)) last_ = &*lines_.try_emplace(LineName{shard, name}).first;
  Line& line = last_->second;
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
  node.next = front ? line.front : kNone;
  node.previous = front ? kNone : line.back;
  std::uint32_t& before = node.previous == kNone ? line.front : nodes_[node.previous].next;
  std::uint32_t& after = node.next == kNone ? line.back : nodes_[node.next].previous;
  before = after = at;
  ++line.count;
}

ReadyBuffer::Job ReadyBuffer::Unlink(Line& line, std::uint32_t at) {
  Node& node = nodes_[at];
  (node.previous == kNone ? line.front : nodes_[node.previous].next) = node.next;
  (node.next == kNone ? line.back : nodes_[node.next].previous) = node.previous;
  --line.count;
  --jobs_;
  bytes_ -= BytesOf(node.job);
  free_.push_back(at);
  return std::exchange(node.job, {});
}

std::vector<ReadyBuffer::Job> ReadyBuffer::TakeFrom(std::uint32_t Line::* end, ShardId shard, std::string_view name,
                                                    std::size_t most) {
  std::vector<Job> jobs;
  const auto it = lines_.find(std::pair{shard, name});
  if (it == lines_.end()) return jobs;
  Line& line = it->second;
  jobs.reserve(std::min<std::size_t>(most, line.count));
  while (line.count > 0 && jobs.size() < most) jobs.push_back(Unlink(line, line.*end));
  if (line.count == 0) {
    if (last_ == &*it) last_ = nullptr;
    lines_.erase(it);
  }
  ReleaseIfEmpty();
  return jobs;
}

std::vector<ReadyBuffer::Job> ReadyBuffer::TakeFirst(ShardId shard, std::string_view line, std::size_t most) {
  return TakeFrom(&Line::front, shard, line, most);
}

std::vector<ReadyBuffer::Job> ReadyBuffer::TakeLast(ShardId shard, std::string_view line, std::size_t most) {
  std::vector<Job> jobs = TakeFrom(&Line::back, shard, line, most);
  std::ranges::reverse(jobs);
  return jobs;
}

std::vector<ReadyBuffer::LineName> ReadyBuffer::LinesOf(ShardId shard) const {
  std::vector<LineName> names;
  for (const auto& [name, line] : lines_)
    if (name.first == shard) names.push_back(name);
  std::ranges::sort(names);
  return names;
}

std::vector<ReadyBuffer::LineName> ReadyBuffer::LinesBefore(MonoTime before) const {
  std::vector<LineName> names;
  for (const auto& [name, line] : lines_)
    if (nodes_[line.front].job.since < before) names.push_back(name);
  std::ranges::sort(names);
  return names;
}

void ReadyBuffer::DropShard(ShardId shard) {
  for (const LineName& name : LinesOf(shard)) TakeFirst(shard, name.second, SIZE_MAX);
}

// What held many is given back.
void ReadyBuffer::ReleaseIfEmpty() {
  if (jobs_ > 0 || nodes_.size() <= kNodesKept) return;
  nodes_ = {};
  free_ = {};
}

}  // namespace millrace
