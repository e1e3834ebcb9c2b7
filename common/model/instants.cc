#include "common/model/instants.h"

#include <optional>

namespace millrace {
namespace {

bool ClampIfSet(std::optional<WallTime>& time) { return time && ClampInstant(*time); }

}  // namespace

bool ClampInstants(JobSpec& job) {
  bool out = ClampInstant(job.submitted_at);
  out = ClampIfSet(job.run_at) || out;
  out = ClampIfSet(job.options.expires_at) || out;
  return ClampIfSet(job.options.deadline) || out;
}

bool ClampInstants(RunSpec& run) { return ClampInstant(run.created_at); }

bool ClampInstants(AttemptReport& report) {
  const bool out = ClampInstant(report.started_at);
  return ClampInstant(report.finished_at) || out;
}

}  // namespace millrace
