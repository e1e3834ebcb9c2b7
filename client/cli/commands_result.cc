// job result, job refused.
#include <cstdio>
#include <fstream>
#include <iterator>

#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/find_run.h"
#include "common/base/limits.h"
#include "common/base/tell.h"
#include "common/crypto/audit.h"
#include "common/model/stage_task.h"

namespace millrace::cli {
namespace {

constexpr std::uint32_t kListDefault = 50, kListMax = 500;

// The bytes of a file in the lake, if they are still those that the outcome names.
Result<std::string> ReadResultFile(const std::string& lake, const ResultFile& file) {
  const std::string path = lake + "/" + file.path;
  std::ifstream in(path, std::ios::binary);
  if (!in)
    return Fail(ErrorCode::kNotFound,
                "result file '{}' cannot be read; it goes when its run is pruned, and it is in the lake ({})", path, lake);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  if (static_cast<std::int64_t>(bytes.size()) != file.bytes || ToHex(Sha256(bytes)) != file.sha256)
    return Fail(ErrorCode::kCorrupt, "result file '{}' is not what the job wrote: {} bytes, the ledger says {} with SHA-256 {}",
                path, bytes.size(), file.bytes, file.sha256);
  return bytes;
}

void Write(std::string_view bytes) { std::fwrite(bytes.data(), 1, bytes.size(), stdout); }

Result<ExitCode> DoResult(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "job"));
  MILLRACE_TRY(CheckJobName(options.id));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const JobId id, FindJob(*ledger, context->org(), options.id, context->Deadline()));
  MILLRACE_TRY_ASSIGN(const JobDetail job, ledger->GetJob(context->org(), id, context->Deadline()));
  if (!job.outcome) return Fail(ErrorCode::kNotFound, "job {}: it has not ended", options.id);
  const std::string& text = job.outcome->report.result;
  if (text.empty())
    return Fail(ErrorCode::kNotFound, "job {}: it is {} and gave nothing back", options.id, Name(job.outcome->state));
  const auto result = StageResultFromJson(text);
  const std::string& lake = context->config().lake;
  if (result && result->output_file) {
    MILLRACE_TRY_ASSIGN(const std::string bytes, ReadResultFile(lake, *result->output_file));
    Write(bytes);
  } else if (result && !result->output.empty()) {
    Write(result->output);
  } else if (result && result->full) {
    MILLRACE_TRY_ASSIGN(const std::string bytes, ReadResultFile(lake, *result->full));
    Write(bytes);
    Write("\n");
  } else {
    Write(text);
    Write("\n");
  }
  return ExitCode::kOk;
}

Result<ExitCode> DoRefused(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "job"));
  MILLRACE_TRY_ASSIGN(const std::uint32_t limit, CountOf(options, kListDefault, kListMax));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const EnqueueStatus status, ledger->Enqueued(context->org(), limit, context->Deadline()));
  Table table{.columns = {"job", "queue", "kind", "refused_at", "reason"}, .rows = {}};
  for (const EnqueueRefused& row : status.refused)
    table.rows.push_back({row.job.ToString(), row.queue, row.kind, ToRfc3339(row.refused_at), row.reason});
  Print(table, context->format());
  if (context->format() == OutputFormat::kTable && status.waiting > 0)
    Tell("{} rows wait to be taken by a broker\n", status.waiting);
  return ExitCode::kOk;
}

}  // namespace

ExitCode JobResult(const Options& options) { return Finish(DoResult(options)); }
ExitCode JobRefused(const Options& options) { return Finish(DoRefused(options)); }

}  // namespace millrace::cli
