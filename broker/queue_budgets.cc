#include "broker/queue_budgets.h"

#include <algorithm>

namespace millrace {

void QueueBudgets::Sub(Waits& from, Waits::iterator it, Amount less) {
  it->second.jobs -= std::min(it->second.jobs, less.jobs);
  it->second.bytes -= std::min(it->second.bytes, less.bytes);
  if (it->second.jobs == 0) from.erase(it);
}

QueueBudgets::Amount QueueBudgets::Of(const Waits& waits, OrgId org, const std::string& queue) {
  const auto it = waits.find(std::pair{org, std::string_view(queue)});
  return it == waits.end() ? Amount{} : it->second;
}

void QueueBudgets::Limit(const QueueSettings& settings) {
  const Name key{settings.org, settings.queue};
  if (settings.max_waiting_jobs == 0 && settings.max_waiting_bytes == 0) {
    limits_.erase(key);
  } else {
    limits_[key] = {.jobs = settings.max_waiting_jobs, .bytes = settings.max_waiting_bytes};
  }
}

void QueueBudgets::Enqueued(OrgId org, const std::string& queue, std::size_t bytes, std::uint64_t jobs) {
  auto at = in_queue_.find(std::pair{org, std::string_view(queue)});
  if (at == in_queue_.end()) at = in_queue_.try_emplace({org, queue}).first;
  at->second.jobs += jobs;
  at->second.bytes += bytes;
}

void QueueBudgets::Claimed(OrgId org, const std::string& queue, std::optional<std::size_t> bytes) {
  const auto it = in_queue_.find(std::pair{org, std::string_view(queue)});
  if (it == in_queue_.end()) return;
  Sub(in_queue_, it, {.jobs = 1, .bytes = bytes.value_or(it->second.bytes / it->second.jobs)});
}

void QueueBudgets::Accepting(const JobSpec& job, Amounts& piece) {
  const auto add = [&](auto& amounts) {
    auto at = amounts.find(std::pair{job.org, std::string_view(job.queue)});
    if (at == amounts.end()) at = amounts.try_emplace({job.org, job.queue}).first;
    ++at->second.jobs;
    at->second.bytes += job.payload.size();
  };
  add(accepting_);
  add(piece);
}

void QueueBudgets::Accepted(const Amounts& piece) {
  for (const auto& [key, amount] : piece)
    if (const auto it = accepting_.find(key); it != accepting_.end()) Sub(accepting_, it, amount);
}

QueueBudgets::Amount QueueBudgets::Waiting(OrgId org, const std::string& queue) const {
  const Amount a = Of(in_queue_, org, queue), b = Of(accepting_, org, queue);
  return {.jobs = a.jobs + b.jobs, .bytes = a.bytes + b.bytes};
}

std::map<std::string, QueueBudgets::Amount> QueueBudgets::WaitingOf(OrgId org) const {
  std::map<std::string, Amount> all;
  for (const Waits* waits : {&in_queue_, &accepting_})
    for (const auto& [name, amount] : *waits) {
      if (name.first != org) continue;
      all[name.second].jobs += amount.jobs;
      all[name.second].bytes += amount.bytes;
    }
  return all;
}

std::optional<std::string> QueueBudgets::Refusal(OrgId org, const std::string& queue, Amount more) const {
  const auto limit = limits_.find({org, queue});
  if (limit == limits_.end() || more.jobs == 0) return std::nullopt;
  const auto refuse = [&](std::string_view what, std::string_view flag, std::uint64_t now, std::uint64_t add,
                          std::uint64_t max) {
    return fmt::format(
        "queue '{}': {} {} wait, {} more do not fit into its limit of {}; submit again when it has drained, or raise the "
        "limit: "
        "millrace queue set {} {} N",
        queue, now, what, add, max, queue, flag);
  };
  const Amount now = Waiting(org, queue);
  if (limit->second.jobs > 0 && now.jobs + more.jobs > limit->second.jobs)
    return refuse("jobs", "--max-waiting", now.jobs, more.jobs, limit->second.jobs);
  if (limit->second.bytes > 0 && now.bytes + more.bytes > limit->second.bytes)
    return refuse("bytes", "--max-waiting-bytes", now.bytes, more.bytes, limit->second.bytes);
  return std::nullopt;
}

}  // namespace millrace
