#include "client/cli/job_filter.h"

#include "client/cli/context.h"

namespace millrace::cli {
namespace {

// Page by page, each with a time limit of its own.
template <class Id, class List>
Result<std::vector<Id>> All(auto filter, std::size_t max, std::string_view command, std::string_view noun, const List& list) {
  std::vector<Id> ids;
  filter.limit = kListPageMax;
  while (true) {
    MILLRACE_TRY_ASSIGN(const auto page, list(filter));
    for (const auto& each : page) ids.push_back(each.spec.id);
    if (page.size() < kListPageMax) return ids;
    if (ids.size() >= max) return Fail(ErrorCode::kLimit, "{}: more than {} {} match; narrow the filter", command, max, noun);
    filter.before = ids.back();
  }
}

}  // namespace

Result<std::vector<JobId>> AllJobs(Ledger& ledger, JobFilter filter, std::string_view command, const Clock& clock) {
  return All<JobId>(std::move(filter), kFilteredMax, command, "jobs",
                    [&](const JobFilter& page) { return ledger.ListJobs(page, clock.Now() + kLedgerCallTimeout); });
}

Result<std::vector<RunId>> AllRuns(Ledger& ledger, RunFilter filter, std::string_view command, const Clock& clock) {
  return All<RunId>(std::move(filter), kFilteredRunsMax, command, "runs",
                    [&](const RunFilter& page) { return ledger.ListRuns(page, clock.Now() + kLedgerCallTimeout); });
}

}  // namespace millrace::cli
