#include "broker/queue_budgets.h"

#include <algorithm>

#include "common/model/whole_org.h"

namespace millrace {

void QueueBudgets::Add(Waits& to, OrgId org, const std::string& queue, Amount more) {
  auto at = to.find(std::pair{org, std::string_view(queue)});
  if (at == to.end()) {
    at = to.try_emplace({org, queue}).first;
    if (const auto whole = orgs_.find(org); whole != orgs_.end()) at->second.of_org = &whole->second.waits;
  }
  for (Amount* amount : {&at->second.amount, at->second.of_org}) {
    if (amount == nullptr) continue;
    amount->jobs += more.jobs;
    amount->bytes += more.bytes;
  }
}

void QueueBudgets::Sub(Waits& from, Waits::iterator it, Amount less) {
  const Amount had = it->second.amount;
  less.jobs = std::min(had.jobs, less.jobs);
  // Bytes are known about: none are left behind by the last job.
  less.bytes = less.jobs == had.jobs ? had.bytes : std::min(had.bytes, less.bytes);
  for (Amount* amount : {&it->second.amount, it->second.of_org}) {
    if (amount == nullptr) continue;
    amount->jobs -= less.jobs;
    amount->bytes -= less.bytes;
  }
  if (less.jobs == had.jobs) from.erase(it);
}

QueueBudgets::Amount QueueBudgets::Of(const Waits& waits, OrgId org, const std::string& queue) {
  const auto it = waits.find(std::pair{org, std::string_view(queue)});
  return it == waits.end() ? Amount{} : it->second.amount;
}

void QueueBudgets::Limit(const QueueSettings& settings) {
  const Amount limit{.jobs = settings.max_waiting_jobs, .bytes = settings.max_waiting_bytes};
  if (settings.queue == kWholeOrg) return LimitOrg(settings.org, limit);
  const Name key{settings.org, settings.queue};
  if (limit.jobs == 0 && limit.bytes == 0) {
    limits_.erase(key);
  } else {
    limits_[key] = limit;
  }
}

void QueueBudgets::LimitOrg(OrgId org, Amount limit) {
  const bool limited = limit.jobs > 0 || limit.bytes > 0;
  if (const auto known = orgs_.find(org); known != orgs_.end() && limited) {
    known->second.limit = limit;
    return;
  }
  Amount* const sum = limited ? &orgs_.try_emplace(org, Org{.limit = limit, .waits = {}}).first->second.waits : nullptr;
  for (Waits* waits : {&in_queue_, &accepting_})
    for (auto& [name, wait] : *waits) {
      if (name.first != org) continue;
      wait.of_org = sum;
      if (sum == nullptr) continue;
      sum->jobs += wait.amount.jobs;
      sum->bytes += wait.amount.bytes;
    }
  if (!limited) orgs_.erase(org);
}

void QueueBudgets::Enqueued(OrgId org, const std::string& queue, std::size_t bytes, std::uint64_t jobs) {
  Add(in_queue_, org, queue, {.jobs = jobs, .bytes = bytes});
}

void QueueBudgets::Claimed(OrgId org, const std::string& queue, std::optional<std::size_t> bytes) {
  const auto it = in_queue_.find(std::pair{org, std::string_view(queue)});
  if (it == in_queue_.end()) return;
  const Amount& all = it->second.amount;
  Sub(in_queue_, it, {.jobs = 1, .bytes = bytes.value_or(all.jobs == 0 ? 0 : all.bytes / all.jobs)});
}

void QueueBudgets::Accepting(const JobSpec& job, Amounts& piece) {
  Add(accepting_, job.org, job.queue, {.jobs = 1, .bytes = job.payload.size()});
  auto at = piece.find(std::pair{job.org, std::string_view(job.queue)});
  if (at == piece.end()) at = piece.try_emplace({job.org, job.queue}).first;
  ++at->second.jobs;
  at->second.bytes += job.payload.size();
}

void QueueBudgets::Accepted(const Amounts& piece) {
  for (const auto& [key, amount] : piece)
    if (const auto it = accepting_.find(key); it != accepting_.end()) Sub(accepting_, it, amount);
}

QueueBudgets::Amount QueueBudgets::Waiting(OrgId org, const std::string& queue) const {
  if (const auto whole = orgs_.find(org); queue == kWholeOrg && whole != orgs_.end()) return whole->second.waits;
  const Amount a = Of(in_queue_, org, queue), b = Of(accepting_, org, queue);
  return {.jobs = a.jobs + b.jobs, .bytes = a.bytes + b.bytes};
}

std::map<std::string, QueueBudgets::Amount> QueueBudgets::WaitingOf(OrgId org) const {
  std::map<std::string, Amount> all;
  for (const Waits* waits : {&in_queue_, &accepting_})
    for (const auto& [name, wait] : *waits) {
      if (name.first != org) continue;
      all[name.second].jobs += wait.amount.jobs;
      all[name.second].bytes += wait.amount.bytes;
    }
  return all;
}

std::optional<Error> QueueBudgets::Refusal(OrgId org, const std::string& queue, Amount more) const {
  if (more.jobs == 0) return std::nullopt;
  const bool whole = queue == kWholeOrg;
  Amount limit;
  if (const auto of_org = orgs_.find(org); whole && of_org != orgs_.end()) limit = of_org->second.limit;
  if (const auto own = limits_.find({org, queue}); own != limits_.end()) limit = own->second;
  const Amount now = limit.jobs > 0 || limit.bytes > 0 ? Waiting(org, queue) : Amount{};
  const auto refuse = [&](std::string_view what, std::string_view flag, std::uint64_t waits, std::uint64_t add,
                          std::uint64_t max) {
    const std::string where = whole ? fmt::format("org {}", org.value()) : fmt::format("queue '{}'", queue);
    const std::string raise =
        fmt::format("raise the limit: millrace queue set {} {} N{}", whole ? fmt::format("'{}'", queue) : queue, flag,
                    org == kDefaultOrg ? "" : fmt::format(" --org {}", org.value()));
    if (add > max)
      return Error{ErrorCode::kInvalidArgument, fmt::format("{}: {} {} at once never fit into its limit of {}; submit fewer at "
                                                            "a time, or {}",
                                                            where, add, what, max, raise)};
    return Error{ErrorCode::kLimit, fmt::format("{}: {} {} wait{}, {} more do not fit into its limit of {}; submit again when "
                                                "it has drained, or {}",
                                                where, waits, what, whole ? " in its queues" : "", add, max, raise)};
  };
  std::optional<Error> refusal;
  if (limit.jobs > 0 && now.jobs + more.jobs > limit.jobs)
    refusal = refuse("jobs", "--max-waiting", now.jobs, more.jobs, limit.jobs);
  if (limit.bytes > 0 && now.bytes + more.bytes > limit.bytes && (!refusal || more.bytes > limit.bytes))
    refusal = refuse("bytes", "--max-waiting-bytes", now.bytes, more.bytes, limit.bytes);
  return refusal;
}

}  // namespace millrace
