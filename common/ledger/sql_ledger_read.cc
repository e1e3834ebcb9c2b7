#include <algorithm>

#include "common/ledger/sql_ledger.h"

namespace millrace::ledger {
namespace {
constexpr std::uint32_t kListLimitMax = 500;
}

Result<std::vector<RunSummary>> SqlLedger::Summaries(const std::string& where, const Params& params, std::uint32_t limit,
                                                     MonoTime deadline) {
  const std::string sql = "select " + store_->Columns(Table::kRun, "r") +
                          ", o.state, o.reason, o.finished_at, (select count(*) from job j where j.run = r.run), "
                          "(select count(*) from job j join outcome x on x.job = j.job where j.run = r.run), "
                          "(select count(*) from job j join outcome x on x.job = j.job where j.run = r.run and x.state = " +
                          std::to_string(static_cast<int>(JobState::kSucceeded)) +
                          ") from run r left join run_outcome o on o.run = r.run where " + where +
                          " order by r.run desc limit " + std::to_string(limit);
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(sql, params, deadline));
  const std::size_t at = DefOf(Table::kRun).columns.size();
  std::vector<RunSummary> all;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = rows[i];
    RunSummary s;
    s.spec = RunFrom(row);
    if (!row[at].null) {
      s.state = static_cast<RunState>(row[at].number);
      s.reason = row[at + 1].bytes;
      s.finished_at = TimeOf(row[at + 2]);
    }
    s.jobs = static_cast<std::uint32_t>(row[at + 3].number);
    s.jobs_ended = static_cast<std::uint32_t>(row[at + 4].number);
    s.jobs_succeeded = static_cast<std::uint32_t>(row[at + 5].number);
    all.push_back(std::move(s));
  }
  return all;
}

Result<std::vector<RunSummary>> SqlLedger::ListRuns(const RunFilter& filter, MonoTime deadline) {
  std::string where = "r.org = $1";
  Params params;
  params.Int(filter.org.value());
  int next = 2;
  if (filter.pipeline) {
    where += " and r.pipeline = $" + std::to_string(next++);
    params.Text(*filter.pipeline);
  }
  if (filter.before) {
    where += " and r.run < $" + std::to_string(next++);
    params.Id(filter.before->uuid);
  }
  if (filter.state && IsTerminal(*filter.state)) {
    where += " and o.state = $" + std::to_string(next++);
    params.Int(static_cast<std::uint8_t>(*filter.state));
  } else if (filter.state) {  // what is not terminal has no row: the owner knows which of the three it is
    where += " and o.run is null";
  }
  if (filter.open)
    where += fmt::format(" and o.state <> {} and not exists (select 1 from dead_action d where d.job = r.run)",
                         static_cast<int>(RunState::kSucceeded));
  return Summaries(std::move(where), std::move(params), std::clamp(filter.limit, 1u, kListLimitMax), deadline);
}

Result<std::vector<JobDetail>> SqlLedger::Details(std::string_view where, const Params& params, MonoTime deadline) {
  const std::string condition(where);
  MILLRACE_TRY_ASSIGN(const Rows jobs, store_->Run("select " + store_->Columns(Table::kJob, "j") + " from job j where " +
                                                       condition + " order by j.job",
                                                   params, deadline));
  MILLRACE_TRY_ASSIGN(const Rows attempts, store_->Run("select " + store_->Columns(Table::kAttempt, "a") +
                                                           " from job j join attempt a on a.job = j.job where " + condition +
                                                           " order by a.job, a.token",
                                                       params, deadline));
  MILLRACE_TRY_ASSIGN(const Rows outcomes, store_->Run("select " + store_->Columns(Table::kOutcome, "o") +
                                                           " from job j join outcome o on o.job = j.job where " + condition,
                                                       params, deadline));
  MILLRACE_TRY_ASSIGN(const Rows actions, store_->Run("select " + store_->Columns(Table::kDeadAction, "d") +
                                                          " from job j join dead_action d on d.job = j.job where " + condition,
                                                      params, deadline));
  std::vector<JobDetail> all;
  std::map<Uuid, std::size_t> place;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    all.push_back({JobFrom(jobs[i]), {}, {}, {}});
    place[all.back().spec.id.uuid] = i;
  }
  for (std::size_t i = 0; i < attempts.size(); ++i)
    if (const auto at = place.find(UuidOf(attempts[i][0])); at != place.end())
      all[at->second].attempts.push_back(AttemptFrom(attempts[i]));
  for (std::size_t i = 0; i < outcomes.size(); ++i)
    if (const auto at = place.find(UuidOf(outcomes[i][0])); at != place.end())
      all[at->second].outcome = OutcomeFrom(outcomes[i]);
  for (std::size_t i = 0; i < actions.size(); ++i)
    if (const auto at = place.find(UuidOf(actions[i][0])); at != place.end())
      all[at->second].dead_action = DeadActionFrom(actions[i]);
  return all;
}

Result<RunDetail> SqlLedger::GetRun(OrgId org, RunId run, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(auto found, Summaries("r.org = $1 and r.run = $2", Params().Int(org.value()).Id(run.uuid), 1, deadline));
  if (found.empty()) return Fail(ErrorCode::kNotFound, "no run {}", run.ToString());
  RunDetail detail{std::move(found.front()), {}};
  MILLRACE_TRY_ASSIGN(detail.jobs, Details("j.org = $1 and j.run = $2", Params().Int(org.value()).Id(run.uuid), deadline));
  return detail;
}

Result<JobDetail> SqlLedger::GetJob(OrgId org, JobId job, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(auto found, Details("j.org = $1 and j.job = $2", Params().Int(org.value()).Id(job.uuid), deadline));
  if (!found.empty()) return std::move(found.front());
  MILLRACE_TRY_ASSIGN(const Rows outcome, store_->Run("select " + store_->Columns(Table::kOutcome, "o") +
                                                          " from outcome o where o.org = $1 and o.job = $2",
                                                      Params().Int(org.value()).Id(job.uuid), deadline));
  if (outcome.empty()) return Fail(ErrorCode::kNotFound, "no job {}", job.ToString());
  JobDetail detail{.spec = {}, .attempts = {}, .outcome = OutcomeFrom(outcome[0]), .dead_action = {}};
  detail.spec.id = job;
  detail.spec.org = org;
  detail.spec.queue.clear();
  detail.spec.options.durability = Durability::kRedis;
  return detail;
}

}  // namespace millrace::ledger
