#include "broker/queue_budgets.h"

#include <algorithm>

namespace millrace {
namespace {

using Key = std::pair<OrgId, std::string>;

void Sub(QueueBudgets::Amounts& from, QueueBudgets::Amounts::iterator it, QueueBudgets::Amount less) {
  it->second.jobs -= std::min(it->second.jobs, less.jobs);
  it->second.bytes -= std::min(it->second.bytes, less.bytes);
  if (it->second.jobs == 0) from.erase(it);
}

QueueBudgets::Amount Of(const QueueBudgets::Amounts& amounts, const Key& key) {
  const auto it = amounts.find(key);
  return it == amounts.end() ? QueueBudgets::Amount{} : it->second;
}

}  // namespace

void QueueBudgets::Limit(const QueueSettings& settings) {
  const Key key{settings.org, settings.queue};
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
  for (Amounts* amounts : {&accepting_, &piece}) {
    Amount& amount = (*amounts)[{job.org, job.queue}];
    ++amount.jobs;
    amount.bytes += job.payload.size();
  }
}

void QueueBudgets::Accepted(const Amounts& piece) {
  for (const auto& [key, amount] : piece)
    if (const auto it = accepting_.find(key); it != accepting_.end()) Sub(accepting_, it, amount);
}

QueueBudgets::Amount QueueBudgets::Waiting(OrgId org, const std::string& queue) const {
  const Amount a = Of(in_queue_, {org, queue}), b = Of(accepting_, {org, queue});
  return {.jobs = a.jobs + b.jobs, .bytes = a.bytes + b.bytes};
}

std::map<std::string, QueueBudgets::Amount> QueueBudgets::WaitingOf(OrgId org) const {
  std::map<std::string, Amount> all;
  for (const Amounts* amounts : {&in_queue_, &accepting_})
    for (auto it = amounts->lower_bound({org, {}}); it != amounts->end() && it->first.first == org; ++it) {
      all[it->first.second].jobs += it->second.jobs;
      all[it->first.second].bytes += it->second.bytes;
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
