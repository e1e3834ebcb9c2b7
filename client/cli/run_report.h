// What a run did, from the ledger: for people and as JSON. The JSON's field names are stable (ops/docs/cli.md).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/cli/output.h"
#include "common/base/result.h"
#include "common/ledger/ledger.h"
#include "common/model/stage_task.h"
#include "common/wire/messages.h"

namespace millrace::cli {

struct StageReport {
  std::string stage, kind;  // kind: extract, transform, load, command
  std::string job;          // id
  JobState state = JobState::kBlocked;
  Counters counters;
  std::optional<StageResult> result;  // of the attempt that ended it
  std::optional<WallTime> started_at, finished_at;
  std::string worker, error_class, error, log_tail;
  std::optional<wire::RunUpdate::Stage> running;  // as the broker says
};

struct RunReport {
  std::string run, pipeline, schedule;
  std::int64_t version = 0;
  std::optional<WallTime> slot;
  RunState state = RunState::kRunning;
  std::string reason;
  WallTime created_at{};
  std::optional<WallTime> finished_at;
  std::vector<StageReport> stages;  // in execution order

  // Rows that loads inserted, updated or deleted in their targets.
  std::int64_t Changed() const;
  bool HasLoad() const;
  // S9: every stage that ended well satisfies read = loaded + filtered + quarantined + deduplicated.
  bool Balanced() const;
};

Result<RunReport> MakeRunReport(const RunDetail& detail);
// The ledger knows ends only: adds what a broker says of stages that run.
void AddRunning(RunReport& report, std::span<const wire::RunUpdate::Stage> running);

// How far a job is that runs: "on w1: 1,200 rows, 4.1 kB so far".
std::string ProgressText(const wire::RunUpdate::Stage& running);

Table StageTable(const RunReport& report, OutputFormat format);
std::string ToJson(const RunReport& report);     // one object, indented
std::string ForPeople(const RunReport& report);  // several lines: headline, stage table, identity, targets, errors

// `run list` for people, at most kRunListColumns wide: ids shortened as far as they stay different, times in UTC (their date
// only when it is not today's), reasons cut.
inline constexpr std::size_t kRunListColumns = 100;
std::string RunsForPeople(const std::vector<RunSummary>& runs, WallTime now);

}  // namespace millrace::cli
