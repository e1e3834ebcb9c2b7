// Commands that only look: schedules, queries, audit, configuration, doctor, version, status.
#include <sodium.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <span>

#include "client/cli/allocator.h"
#include "client/cli/broker_client.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/doctor.h"
#include "client/cli/pipeline_file.h"
#include "client/cli/query.h"
#include "common/base/suggest.h"
#include "common/base/tell.h"
#include "common/drivers/sqlite.h"
#include "common/ledger/audit_verify.h"
#include "common/model/cron.h"
#include "common/model/dst_preview.h"
#include "common/model/pipeline_json.h"
#include "common/model/schedule_rules.h"
#include "common/wire/zmtp_transport.h"
#include "scheduler/scheduler.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::uint32_t kFiresDefault = 10, kFiresMax = 10'000;
constexpr std::uint32_t kSlotsDefault = 50, kSlotsMax = 500;
constexpr int kTransitionsShown = 2;
constexpr Millis kStatusTimeout{3000};

std::string UtcColumn(WallTime t) { return ToRfc3339(t); }

// A name that is no applied pipeline comes with the nearest one.
Error NamedPipeline(Error error, Ledger& ledger, const std::string& name, const Context& context) {
  const auto versions = ledger.ListPipelines(context.org(), context.Deadline());
  if (error.code != ErrorCode::kNotFound || !versions) return error;
  std::vector<std::string_view> names;
  for (const PipelineVersion& v : *versions) names.push_back(v.name);
  if (std::ranges::find(names, name) != names.end()) return error;
  if (const auto near = Suggest(name, names)) error.message += fmt::format("; did you mean '{}'?", *near);
  return error;
}

// What a pipeline may be called; anything else that is given for one is meant as a file.
bool IsPipelineName(std::string_view text) {
  return text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string_view::npos;
}

// The schedule that the arguments of `schedule next` mean: a bare expression, a file's, or an applied pipeline's.
Result<ScheduleSpec> FindSchedule(const Options& options, Context& context) {
  if (options.file.empty() && options.cron.empty())
    return Fail(ErrorCode::kInvalidArgument, "schedule next: give a pipeline, or --cron EXPR");
  if (!options.file.empty() && !options.cron.empty())
    return Fail(ErrorCode::kInvalidArgument, "schedule next: give '{}' or --cron '{}', not both", options.file, options.cron);
  if (!options.cron.empty()) {
    ScheduleSpec spec;
    spec.cron = options.cron;
    spec.timezone = options.timezone.empty() ? "UTC" : options.timezone;
    spec.dst = options.dst;
    return spec;
  }
  if (!options.timezone.empty())
    return Fail(ErrorCode::kInvalidArgument, "--timezone is the zone of --cron: '{}' has its own", options.file);
  if (std::filesystem::is_regular_file(options.file) || !IsPipelineName(options.file)) {
    MILLRACE_TRY_ASSIGN(const PipelineFile file, ReadPipelineFile(options.file));
    if (!file.pipeline.schedules.empty()) return file.pipeline.schedules.front();
    return Fail(ErrorCode::kNotFound, "{}: the pipeline has no schedule; write one, or give --cron EXPR", options.file);
  }
  MILLRACE_TRY_ASSIGN(const auto ledger, context.OpenLedger(Context::Create::kNo, "cli"));
  // The schedule in force may differ from the file's (`pipeline apply --cron`).
  MILLRACE_TRY_ASSIGN(const auto rows, ledger->Schedules(context.org(), context.Deadline()));
  for (const ScheduleRow& row : rows)
    if (row.pipeline == options.file) return row.spec;
  if (auto version = ledger->GetPipeline(context.org(), options.file, std::nullopt, context.Deadline()); !version)
    return Prefixed(NamedPipeline(std::move(version.error()), *ledger, options.file, context), "'{}' is no file", options.file);
  return Fail(ErrorCode::kNotFound, "pipeline '{}' has no schedule; apply it with one, or give --cron EXPR", options.file);
}

// What a schedule does around the next jumps of its zone's clock.
Table TransitionRows(const CronSchedule& cron, WallTime from) {
  Table table{.columns = {"transition", "offsets", "part", "local", "offset", "fires", "rule"}, .rows = {}};
  for (const JumpPreview& preview : PreviewTransitions(cron, from, kTransitionsShown)) {
    const std::string at = ToRfc3339(preview.jump.at);
    const std::string offsets = fmt::format("{} to {}", OffsetText(preview.jump.before), OffsetText(preview.jump.after));
    for (const PreviewRow& row : preview.rows)
      table.rows.push_back({at, offsets, std::string(Name(row.part)), row.local, OffsetText(row.offset),
                            row.fire ? Cell{ToRfc3339(*row.fire)} : Cell{}, row.why});
    if (preview.left_out > 0) Tell("{}: {} more local times within the jump are not shown\n", at, preview.left_out);
  }
  return table;
}

Result<ExitCode> DoScheduleNext(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "schedule"));
  MILLRACE_TRY_ASSIGN(const std::uint32_t count, CountOf(options, kFiresDefault, kFiresMax));
  MILLRACE_TRY_ASSIGN(const ScheduleSpec spec, FindSchedule(options, *context));
  MILLRACE_TRY_ASSIGN(const CronSchedule cron, CronSchedule::Make(spec));
  WallTime from = context->clock().WallNow();
  if (!options.from.empty()) {
    auto parsed = ParseRfc3339(options.from);
    if (!parsed) return Prefixed(std::move(parsed.error()), "--from");
    from = *parsed;
  }
  if (options.transitions) {
    const Table table = TransitionRows(cron, from);
    if (table.rows.empty()) Tell("the clock of {} does not jump\n", spec.timezone);
    Print(table, context->format());
    return ExitCode::kOk;
  }
  Table table{.columns = {"utc", "local", "timezone"}, .rows = {}};
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto next = cron.Next(from);
    if (!next) break;
    table.rows.push_back({UtcColumn(*next), cron.InZone(*next), spec.timezone});
    from = *next;
  }
  Print(table, context->format());
  return ExitCode::kOk;
}

// By pipeline: why its schedule cannot run what was applied. Read in parts: a definition may be large.
Result<std::map<std::string, std::string>> ScheduleProblems(const std::vector<ScheduleRow>& rows, Ledger& ledger,
                                                            const Context& context) {
  std::vector<std::string> names;
  for (const ScheduleRow& row : rows) names.push_back(row.pipeline);
  std::map<std::string, std::string> problems;
  for (std::span<const std::string> rest = names; !rest.empty();) {
    const auto part = rest.first(std::min<std::size_t>(rest.size(), 500));
    rest = rest.subspan(part.size());
    MILLRACE_TRY_ASSIGN(const auto versions, ledger.ScheduledVersions(context.org(), part, context.Deadline()));
    for (const PipelineVersion& version : versions) {
      const auto pipeline = PipelineFromJson(version.definition);
      if (std::string why = pipeline ? WhyNoSlotRuns(*pipeline) : pipeline.error().message; !why.empty())
        problems.emplace(version.name, std::move(why));
    }
  }
  return problems;
}

Result<ExitCode> DoScheduleList(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "schedule"));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  MILLRACE_TRY_ASSIGN(const auto rows, ledger->Schedules(context->org(), context->Deadline()));
  MILLRACE_TRY_ASSIGN(const auto problems, ScheduleProblems(rows, *ledger, *context));
  Table table{.columns = {"pipeline", "version", "cron", "timezone", "dst", "catchup", "overlap", "paused", "decided_until",
                          "next", "problem", "start", "end", "jitter_ms", "max_parallel"},
              .rows = {}};
  for (const ScheduleRow& row : rows) {
    const auto cron = CronSchedule::Make(row.spec);
    const auto next = cron && !row.paused ? cron->Next(std::max(row.watermark, context->clock().WallNow())) : std::nullopt;
    const auto problem = problems.find(row.pipeline);
    table.rows.push_back({row.pipeline, row.version, row.spec.cron, row.spec.timezone, row.spec.dst, row.spec.catchup,
                          row.spec.overlap, row.paused, UtcColumn(row.watermark), next ? Cell{UtcColumn(*next)} : Cell{},
                          !cron                       ? Cell{cron.error().message}
                          : problem != problems.end() ? Cell{problem->second}
                                                      : Cell{},
                          row.spec.start.empty() ? Cell{} : Cell{row.spec.start},
                          row.spec.end.empty() ? Cell{} : Cell{row.spec.end}, row.spec.jitter.count(),
                          row.spec.max_parallel == 0 ? Cell{} : Cell{std::int64_t{row.spec.max_parallel}}});
  }
  Print(table, context->format());
  return ExitCode::kOk;
}

// How many slots of the pause were still undecided, and are skipped.
Result<std::size_t> SetPaused(Ledger& ledger, const std::string& pipeline, bool pause, const Context& context) {
  if (!pause) {
    auto resumed = scheduler::ResumeSchedule(ledger, context.org(), pipeline, context.Deadline());
    if (!resumed) return std::unexpected(NamedPipeline(std::move(resumed.error()), ledger, pipeline, context));
    return *resumed;
  }
  auto paused = ledger.SetPaused(context.org(), pipeline, true, context.Deadline());
  if (!paused) return std::unexpected(NamedPipeline(std::move(paused.error()), ledger, pipeline, context));
  return std::size_t{0};
}

// One after the other: a name that fails leaves the others as they were asked for.
Result<ExitCode> DoSchedulePause(const Options& options, bool pause) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "schedule"));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  std::size_t skipped = 0;
  std::optional<Error> failed;
  for (const std::string& pipeline : options.names) {
    auto done = SetPaused(*ledger, pipeline, pause, *context);
    if (done) skipped += *done;
    if (done) continue;
    if (failed) (void)Complain(*failed);
    failed = std::move(done.error());
  }
  MILLRACE_TRY_ASSIGN(const auto rows, ledger->Schedules(context->org(), context->Deadline()));
  Table table{.columns = {"pipeline", "cron", "timezone", "paused", "next"}, .rows = {}};
  for (const ScheduleRow& row : rows) {
    if (std::ranges::find(options.names, row.pipeline) == options.names.end()) continue;
    const auto cron = CronSchedule::Make(row.spec);
    const auto next = cron && !row.paused ? cron->Next(std::max(row.watermark, context->clock().WallNow())) : std::nullopt;
    table.rows.push_back({row.pipeline, row.spec.cron, row.spec.timezone, row.paused, next ? Cell{UtcColumn(*next)} : Cell{}});
  }
  if (failed && table.rows.empty()) return std::unexpected(*std::move(failed));
  Print(table, context->format());
  if (skipped > 0) Tell("{} slots of the pause were still undecided; they are skipped\n", skipped);
  if (failed) return std::unexpected(*std::move(failed));
  return ExitCode::kOk;
}

Result<ExitCode> DoScheduleSlots(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "schedule"));
  MILLRACE_TRY_ASSIGN(const std::uint32_t count, CountOf(options, kSlotsDefault, kSlotsMax));
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  auto version = ledger->GetPipeline(context->org(), options.pipeline, std::nullopt, context->Deadline());
  if (!version) return std::unexpected(NamedPipeline(std::move(version.error()), *ledger, options.pipeline, *context));
  MILLRACE_TRY_ASSIGN(const auto slots, ledger->Slots(context->org(), options.pipeline, count, context->Deadline()));
  Table table{.columns = {"slot", "state", "reason", "run", "decided_at"}, .rows = {}};
  for (const SlotRow& slot : slots)
    table.rows.push_back({UtcColumn(slot.key.slot), slot.state, slot.reason, slot.run ? Cell{slot.run->ToString()} : Cell{},
                          UtcColumn(slot.decided_at)});
  Print(table, context->format());
  return ExitCode::kOk;
}

Result<ExitCode> DoQuery(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "query"));
  std::string known;
  for (const ConnectionSpec& connection : context->Connections()) {
    if (connection.name == options.connection) {
      MILLRACE_TRY_ASSIGN(const Table table, RunQuery(connection, options.sql, context->clock(), context->Deadline()));
      Print(table, context->full_format());
      return ExitCode::kOk;
    }
    known += (known.empty() ? "" : ", ") + connection.name;
  }
  return Fail(ErrorCode::kNotFound, "there is no connection '{}'; the configuration has: {}", options.connection, known);
}

std::string FindingText(const AuditFinding& finding) {
  std::string text = fmt::format("{}: {}", Name(finding.kind), finding.explanation);
  if (!finding.table.empty() || !finding.key.empty()) text += fmt::format("\n  row: {} {}", finding.table, finding.key);
  if (!finding.writer.IsNil())
    text += fmt::format("\n  record: writer {}, seq {}{}", finding.writer.ToString(), finding.seq,
                        finding.index ? fmt::format(", row {}", *finding.index) : "");
  return text;
}

Result<ExitCode> DoAuditVerify(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "audit"));
  const std::string dir = options.checkpoints.empty() ? context->config().audit.checkpoint_dir : options.checkpoints;
  const std::string key_path = options.public_key.empty() ? context->config().audit.key_file + ".pub" : options.public_key;
  std::optional<CheckpointSet> checkpoints;
  AuditVerifyOptions verify;
  if (!options.checkpoints.empty() || std::filesystem::exists(dir)) {
    MILLRACE_TRY_ASSIGN(const PublicKey key, ReadPublicKey(key_path));
    MILLRACE_TRY_ASSIGN(checkpoints, ReadCheckpoints(dir, key));
    verify.key = key;
  }
  MILLRACE_TRY_ASSIGN(const auto ledger, context->OpenLedger(Context::Create::kNo, "cli"));
  verify.deadline = context->clock().Now() + std::chrono::hours{24};
  MILLRACE_TRY_ASSIGN(const AuditReport report, VerifyAudit(*ledger, checkpoints ? &*checkpoints : nullptr, verify));
  if (context->full_format() == OutputFormat::kTable) {
    fmt::print("{}: {} rows in {} records of {} writers, {} checkpoints\n", report.ok ? "the audit trail verifies" : "TAMPERED",
               HumanCount(static_cast<std::int64_t>(report.rows)), HumanCount(static_cast<std::int64_t>(report.records)),
               report.writers, report.checkpoints);
    if (report.first_bad) fmt::print("{}\n", FindingText(*report.first_bad));
    for (const std::string& line : report.unproven) fmt::print("not proven: {}\n", line);
  } else if (context->full_format() != OutputFormat::kJson) {
    const auto& bad = report.first_bad;
    Print(Table{.columns = {"ok", "writers", "records", "rows", "checkpoints", "unpinned_records", "kind", "table", "key",
                            "explanation"},
                .rows = {{report.ok, static_cast<std::int64_t>(report.writers), static_cast<std::int64_t>(report.records),
                          static_cast<std::int64_t>(report.rows), static_cast<std::int64_t>(report.checkpoints),
                          static_cast<std::int64_t>(report.unpinned_records), bad ? Cell{std::string(Name(bad->kind))} : Cell{},
                          bad ? Cell{bad->table} : Cell{}, bad ? Cell{bad->key} : Cell{},
                          bad ? Cell{bad->explanation} : Cell{}}}},
          context->full_format());
  } else {
    Json json{{"ok", report.ok},
              {"writers", report.writers},
              {"records", report.records},
              {"rows", report.rows},
              {"checkpoints", report.checkpoints},
              {"unpinned_records", report.unpinned_records},
              {"unproven", report.unproven}};
    if (const auto& bad = report.first_bad) {
      json["first_bad"] = {
          {"kind", Name(bad->kind)},          {"table", bad->table}, {"key", bad->key},
          {"writer", bad->writer.ToString()}, {"seq", bad->seq},     {"index", bad->index ? Json(*bad->index) : Json(nullptr)},
          {"explanation", bad->explanation}};
    }
    fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
  }
  return report.ok ? ExitCode::kOk : ExitCode::kWorkFailed;
}

// A broker as the ledger knows it.
struct KnownBroker {
  std::string name;
  std::vector<std::int64_t> shards;
};

// Those that live, by name.
std::vector<KnownBroker> KnownBrokers(Context& context) {
  std::vector<KnownBroker> all;
  const auto ledger = context.OpenLedger(Context::Create::kNo, "cli");
  if (!ledger) return all;
  const auto shards = (*ledger)->Shards(context.Deadline());
  const auto now = (*ledger)->Now(context.Deadline());
  if (!shards || !now) return all;
  std::map<OwnerId, KnownBroker> found;
  const auto living = (*ledger)->LivingBrokers(context.Deadline());
  if (living)
    for (const auto& [owner, broker] : *living) found[owner].name = broker.name;
  for (const ShardStatus& shard : *shards) {
    if (!shard.owner || *now - shard.renewed_at >= kOwnershipTtl) continue;
    KnownBroker& broker = found[*shard.owner];
    broker.name = shard.owner_name;
    broker.shards.push_back(shard.shard.value());
  }
  for (auto& [owner, broker] : found) {
    std::ranges::sort(broker.shards);
    all.push_back(std::move(broker));
  }
  std::ranges::stable_sort(all, {}, &KnownBroker::name);
  return all;
}

// What `status` shows, in one table, for formats that have only one.
Table StatusRows(const wire::StatusReply& status, const std::vector<KnownBroker>& brokers) {
  Table table{.columns = {"kind", "name", "epoch", "concurrency", "ready", "running", "runs"}, .rows = {}};
  for (const KnownBroker& b : brokers)
    table.rows.push_back({std::string("broker"), b.name, Cell{}, Cell{}, Cell{}, Cell{}, Cell{}});
  for (const auto& s : status.shards)
    table.rows.push_back({std::string("shard"), std::to_string(s.shard), std::int64_t{s.epoch}, Cell{},
                          static_cast<std::int64_t>(s.ready), static_cast<std::int64_t>(s.running),
                          static_cast<std::int64_t>(s.runs)});
  for (const auto& w : status.workers)
    table.rows.push_back(
        {std::string("worker"), w.name, Cell{}, std::int64_t{w.concurrency}, Cell{}, std::int64_t{w.running}, Cell{}});
  return table;
}

Result<ExitCode> DoStatus(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "status"));
  MILLRACE_TRY_ASSIGN(const auto transport, wire::MakeZmtpTransport());
  const std::string endpoint = context->ClientEndpoint();
  auto client = BrokerClient::Connect(*transport, endpoint, context->clock());
  auto status = client ? client->Status(context->clock().Now() + kStatusTimeout) : std::unexpected(std::move(client.error()));
  const std::vector<KnownBroker> brokers = KnownBrokers(*context);
  if (!status) {
    std::string others;
    for (const KnownBroker& b : brokers)
      others += fmt::format("{}'{}' with {} shards", others.empty() ? "; the ledger knows of " : ", ", b.name, b.shards.size());
    return Fail(ErrorCode::kUnavailable, "no broker answers at {}: start '{}'{}", endpoint,
                context->embedded() ? "millrace up --home " + context->config().home : "millrace broker", others);
  }
  if (context->full_format() == OutputFormat::kCsv || context->full_format() == OutputFormat::kNdjson) {
    Print(StatusRows(*status, brokers), context->full_format());
    return ExitCode::kOk;
  }
  if (context->full_format() == OutputFormat::kJson) {
    Json json{{"broker", status->broker}, {"shards", Json::array()}, {"workers", Json::array()}};
    for (const auto& s : status->shards)
      json["shards"].push_back(
          {{"shard", s.shard}, {"epoch", s.epoch}, {"ready", s.ready}, {"running", s.running}, {"runs", s.runs}});
    for (const auto& w : status->workers)
      json["workers"].push_back({{"name", w.name}, {"concurrency", w.concurrency}, {"running", w.running}});
    json["brokers"] = Json::array();
    for (const KnownBroker& b : brokers) json["brokers"].push_back({{"name", b.name}, {"shards", b.shards}});
    fmt::print("{}\n", json.dump(2));
    return ExitCode::kOk;
  }
  Table shards{.columns = {"shard", "epoch", "ready", "running", "runs"}, .rows = {}};
  for (const auto& s : status->shards)
    shards.rows.push_back({std::int64_t{s.shard}, std::int64_t{s.epoch}, static_cast<std::int64_t>(s.ready),
                           static_cast<std::int64_t>(s.running), static_cast<std::int64_t>(s.runs)});
  Table workers{.columns = {"worker", "concurrency", "running"}, .rows = {}};
  for (const auto& w : status->workers) workers.rows.push_back({w.name, std::int64_t{w.concurrency}, std::int64_t{w.running}});
  std::vector<std::int64_t> served;
  for (const auto& s : status->shards) served.push_back(std::int64_t{s.shard});
  std::ranges::sort(served);
  // Of several with its name it is the one with its shards.
  const auto answers = [&](const KnownBroker& b) {
    return b.name == status->broker && (std::ranges::count(brokers, b.name, &KnownBroker::name) == 1 || b.shards == served);
  };
  Table others{.columns = {"broker", "shards", ""}, .rows = {}};
  for (const KnownBroker& b : brokers)
    others.rows.push_back(
        {b.name, static_cast<std::int64_t>(b.shards.size()), std::string(answers(b) ? "the one that answers here" : "")});
  fmt::print("broker {}\n\n{}\n{}", status->broker, Format(shards, OutputFormat::kTable),
             Format(workers, OutputFormat::kTable));
  if (brokers.size() > 1) fmt::print("\n{}", Format(others, OutputFormat::kTable));
  return ExitCode::kOk;
}

Result<ExitCode> DoConfigShow(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "config"));
  Table table{.columns = {"key", "value"}, .rows = {}};
  if (options.origin) table.columns.emplace_back("origin");
  for (const ConfigValue& value : context->config_values()) {
    std::vector<Cell> row{value.key, value.shown};
    if (options.origin) row.emplace_back(value.origin);
    table.rows.push_back(std::move(row));
  }
  Print(table, context->full_format());
  return ExitCode::kOk;
}

Result<ExitCode> DoDoctor(const Options& options) {
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "doctor"));
  const std::vector<Finding> findings = Examine(*context);
  Table table{.columns = {"check", "ok", "found", "fix"}, .rows = {}};
  bool ok = true;
  for (const Finding& finding : findings) {
    table.rows.push_back({finding.check, finding.ok, finding.found, finding.fix});
    ok = ok && finding.ok;
  }
  Print(table, context->full_format());
  return ok ? ExitCode::kOk : ExitCode::kWorkFailed;
}

}  // namespace

ExitCode ScheduleNext(const Options& options) { return Finish(DoScheduleNext(options)); }
ExitCode SchedulePause(const Options& options) { return Finish(DoSchedulePause(options, true)); }
ExitCode ScheduleResume(const Options& options) { return Finish(DoSchedulePause(options, false)); }
ExitCode ScheduleSlots(const Options& options) { return Finish(DoScheduleSlots(options)); }
ExitCode ScheduleList(const Options& options) { return Finish(DoScheduleList(options)); }
ExitCode Query(const Options& options) { return Finish(DoQuery(options)); }
ExitCode AuditVerify(const Options& options) { return Finish(DoAuditVerify(options)); }
ExitCode Status(const Options& options) { return Finish(DoStatus(options)); }
ExitCode ConfigShow(const Options& options) { return Finish(DoConfigShow(options)); }
ExitCode Doctor(const Options& options) { return Finish(DoDoctor(options)); }

ExitCode Version(const Options& options) {
  const auto format = ParseOutputFormat(options.output);
  if (!format) return Complain(format.error());
  Table table{.columns = {"component", "version"}, .rows = {}};
  table.rows.push_back({std::string("millrace"), std::string(MILLRACE_VERSION)});
  table.rows.push_back({std::string("sqlite"), std::string(sqlite::LibraryVersion())});
  table.rows.push_back({std::string("duckdb"), std::string(MILLRACE_DUCKDB_VERSION)});
  table.rows.push_back({std::string("zmtp"), std::string(wire::kZmtpVersion)});
  table.rows.push_back({std::string("libsodium"), std::string(sodium_version_string())});
  table.rows.push_back({std::string("allocator"), AllocatorVersion()});
  table.rows.push_back({std::string("compiler"), std::string(__VERSION__)});
  Print(table, *format);
  return ExitCode::kOk;
}

}  // namespace millrace::cli
