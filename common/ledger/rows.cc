#include "common/ledger/rows.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/model/job_options.h"

namespace millrace::ledger {
namespace {

using enum ColumnType;

constexpr Column kPipelineVersionColumns[] = {{"org", kInt},        {"pipeline", kText},   {"version", kInt},
                                              {"source", kText},    {"definition", kText}, {"base_dir", kText},
                                              {"applied_at", kTime}};
constexpr Column kSlotColumns[] = {{"org", kInt},     {"pipeline", kText},  {"schedule", kText},
                                   {"slot", kTime},   {"generation", kInt}, {"state", kText},
                                   {"reason", kText}, {"run", kUuid},       {"decided_at", kTime}};
constexpr Column kRunColumns[] = {{"run", kUuid},      {"org", kInt},        {"pipeline", kText},  {"version", kInt},
                                  {"schedule", kText}, {"slot", kTime},      {"generation", kInt}, {"overlap", kText},
                                  {"params", kText},   {"created_at", kTime}};
constexpr Column kJobColumns[] = {{"job", kUuid},
                                  {"org", kInt},
                                  {"run", kUuid},
                                  {"stage", kText},
                                  {"kind", kText},
                                  {"queue", kText},
                                  {"priority", kInt},
                                  {"payload", kBytes},
                                  {"depends_on", kUuidList},
                                  {"effect", kText},
                                  {"root", kText},
                                  {"max_attempts", kInt},
                                  {"backoff_base_ms", kInt},
                                  {"backoff_cap_ms", kInt},
                                  {"timeout_ms", kInt},
                                  {"run_at", kTime},
                                  {"submitted_at", kTime},
                                  {"options", kText, true}};
constexpr Column kAttemptColumns[] = {{"job", kUuid},        {"token", kInt},        {"org", kInt},         {"ended", kInt},
                                      {"retryable", kBool},  {"error_class", kText}, {"error", kText},      {"result", kBytes},
                                      {"exit_code", kInt},   {"signal", kInt},       {"log_tail", kBytes},  {"worker", kText},
                                      {"started_at", kTime}, {"finished_at", kTime}, {"deliveries", kInt},  {"failures", kInt},
                                      {"crashes", kInt},     {"next_run_at", kTime}, {"queue", kText, true}};
constexpr Column kOutcomeColumns[] = {
    {"job", kUuid},         {"token", kInt},   {"org", kInt},         {"ended", kInt},        {"retryable", kBool},
    {"error_class", kText}, {"error", kText},  {"result", kBytes},    {"exit_code", kInt},    {"signal", kInt},
    {"log_tail", kBytes},   {"worker", kText}, {"started_at", kTime}, {"finished_at", kTime}, {"deliveries", kInt},
    {"failures", kInt},     {"crashes", kInt}, {"run", kUuid},        {"state", kInt},        {"recorded_at", kTime},
    {"queue", kText, true}};
constexpr Column kRunOutcomeColumns[] = {
    {"run", kUuid}, {"org", kInt}, {"state", kInt}, {"reason", kText}, {"finished_at", kTime}};
constexpr Column kCancelColumns[] = {{"item", kUuid},  {"is_run", kBool}, {"org", kInt},
                                     {"actor", kText}, {"reason", kText}, {"requested_at", kTime}};
constexpr Column kQueueSettingColumns[] = {{"org", kInt},       {"queue", kText}, {"revision", kInt}, {"shard", kInt},
                                           {"settings", kText}, {"actor", kText}, {"at", kTime}};
constexpr Column kBackfillColumns[] = {{"backfill", kUuid},   {"org", kInt},       {"pipeline", kText}, {"schedule", kText},
                                       {"range_from", kTime}, {"range_to", kTime}, {"until", kTime},    {"generation", kInt},
                                       {"version", kInt},     {"options", kText},  {"actor", kText},    {"created_at", kTime}};
constexpr Column kDeadActionColumns[] = {{"job", kUuid},   {"org", kInt},     {"action", kInt}, {"new_job", kUuid},
                                         {"actor", kText}, {"reason", kText}, {"at", kTime}};
constexpr Column kPrunedColumns[] = {{"writer", kUuid},     {"number", kInt},     {"through", kInt}, {"through_hash", kBytes},
                                     {"pruned_rows", kInt}, {"leaves", kBytes},   {"before", kTime}, {"at", kTime},
                                     {"actor", kText},      {"signature", kBytes}};
constexpr std::size_t kReportColumns = 17;  // of attempt and outcome: report, org and counters

constexpr TableDef kDefs[kTableCount] = {{"pipeline_version", kPipelineVersionColumns, 3},
                                         {"slot", kSlotColumns, 5},
                                         {"run", kRunColumns, 1},
                                         {"job", kJobColumns, 1},
                                         {"attempt", kAttemptColumns, 2},
                                         {"outcome", kOutcomeColumns, 1},
                                         {"run_outcome", kRunOutcomeColumns, 1},
                                         {"cancel", kCancelColumns, 1},
                                         {"queue_setting", kQueueSettingColumns, 3},
                                         {"backfill", kBackfillColumns, 1},
                                         {"dead_action", kDeadActionColumns, 1},
                                         {"pruned", kPrunedColumns, 2}};

// A later column's null is left out of the leaf: with two of them, or one before the end, two rows could have the same bytes.
constexpr bool LeavesAreUnambiguous() {
  for (const TableDef& def : kDefs)
    for (std::size_t i = 0; i + 1 < def.columns.size(); ++i)
      if (def.columns[i].later) return false;
  return true;
}
static_assert(LeavesAreUnambiguous(), "at most the last column of an audited table may be `later`");

// The length of the UTF-8 sequence at the start of `s`, 0 if there is none that PostgreSQL takes.
std::size_t SequenceLength(std::string_view s) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(s[i]); };
  const auto tail = [&](std::size_t i) { return i < s.size() && (byte(i) & 0xC0) == 0x80; };
  const std::uint8_t b = byte(0);
  if (b != 0 && b < 0x80) return 1;
  if (b >= 0xC2 && b <= 0xDF) return tail(1) ? 2 : 0;
  if (b >= 0xE0 && b <= 0xEF) {
    if (!tail(1) || !tail(2) || (b == 0xE0 && byte(1) < 0xA0) || (b == 0xED && byte(1) > 0x9F)) return 0;
    return 3;
  }
  if (b >= 0xF0 && b <= 0xF4) {
    if (!tail(1) || !tail(2) || !tail(3) || (b == 0xF0 && byte(1) < 0x90) || (b == 0xF4 && byte(1) > 0x8F)) return 0;
    return 4;
  }
  return 0;
}

template <class T>
Value OptionalId(const std::optional<T>& id) {
  return id ? Value::Of(id->AsBytes()) : Value{};
}
Value OptionalTime(std::optional<WallTime> t) { return t ? Value::Of(*t) : Value{}; }

Value OptionalText(std::string_view text, Arena& arena) { return text.empty() ? Value{} : Value::Of(CleanText(text, arena)); }

std::string Str(const Value& value) { return std::string(value.bytes); }
template <class T>
std::optional<T> IdFrom(const Value& value) {
  if (value.null) return std::nullopt;
  return T{UuidOf(value)};
}
std::optional<WallTime> TimeFrom(const Value& value) {
  if (value.null) return std::nullopt;
  return TimeOf(value);
}
std::string_view BytesOf(const Digest& d) { return {reinterpret_cast<const char*>(d.data()), d.size()}; }
Digest DigestFrom(const Value& value) {  // one of the wrong size equals no digest
  Digest d{};
  std::copy_n(value.bytes.begin(), std::min(value.bytes.size(), d.size()), d.begin());
  return d;
}
std::uint32_t U32(const Value& value) { return static_cast<std::uint32_t>(value.number); }

void AppendReport(const AttemptReport& r, OrgId org, const Counters& counters, Arena& arena, std::vector<Value>& c) {
  c.insert(c.end(), {Value::Of(r.job.AsBytes()), Value::Of(static_cast<std::int64_t>(r.token.value())), Value::Of(org.value()),
                     Value::Of(std::int64_t{static_cast<std::uint8_t>(r.end)}), Value::Of(std::int64_t{r.retryable}),
                     Value::Of(CleanText(r.error_class, arena)), Value::Of(CleanText(r.error, arena)), Value::Of(r.result),
                     Value::Of(std::int64_t{r.exit_code}), Value::Of(std::int64_t{r.signal}), Value::Of(r.log_tail),
                     Value::Of(CleanText(r.worker, arena)), Value::Of(r.started_at), Value::Of(r.finished_at),
                     Value::Of(std::int64_t{counters.deliveries}), Value::Of(std::int64_t{counters.failures}),
                     Value::Of(std::int64_t{counters.crashes})});
}

AttemptReport ReportFrom(std::span<const Value> c) {
  AttemptReport r;
  r.job = JobId{UuidOf(c[0])};
  r.token = Token{static_cast<std::uint64_t>(c[1].number)};
  r.end = static_cast<AttemptEnd>(c[3].number);
  r.retryable = c[4].number != 0;
  r.error_class = Str(c[5]);
  r.error = Str(c[6]);
  r.result = Str(c[7]);
  r.exit_code = static_cast<std::int32_t>(c[8].number);
  r.signal = static_cast<std::int32_t>(c[9].number);
  r.log_tail = Str(c[10]);
  r.worker = Str(c[11]);
  r.started_at = TimeOf(c[12]);
  r.finished_at = TimeOf(c[13]);
  return r;
}

Counters CountersFrom(std::span<const Value> c) { return {U32(c[14]), U32(c[15]), U32(c[16])}; }

}  // namespace

const TableDef& DefOf(Table table) { return kDefs[static_cast<std::size_t>(table)]; }

std::string_view CleanText(std::string_view text, Arena& arena) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t n = SequenceLength(text.substr(at));
    if (n == 0) break;
    at += n;
  }
  if (at == text.size()) return text;
  std::string& clean = arena.emplace_back(text.substr(0, at));
  while (at < text.size()) {
    const std::size_t n = SequenceLength(text.substr(at));
    if (n == 0)
      clean += "\xEF\xBF\xBD";
    else
      clean += text.substr(at, n);
    at += std::max<std::size_t>(n, 1);
  }
  return clean;
}

void Append(const PipelineVersion& p, Arena& a, std::vector<Value>& c) {
  c.insert(c.end(),
           {Value::Of(p.org.value()), Value::Of(CleanText(p.name, a)), Value::Of(p.version), Value::Of(CleanText(p.source, a)),
            Value::Of(CleanText(p.definition, a)), Value::Of(CleanText(p.base_dir, a)), Value::Of(p.applied_at)});
}

void Append(const SlotRow& s, Arena& a, std::vector<Value>& c) {
  c.insert(c.end(),
           {Value::Of(s.key.org.value()), Value::Of(CleanText(s.key.pipeline, a)), Value::Of(CleanText(s.key.schedule, a)),
            Value::Of(s.key.slot), Value::Of(std::int64_t{s.key.generation}), Value::Of(CleanText(s.state, a)),
            Value::Of(CleanText(s.reason, a)), OptionalId(s.run), Value::Of(s.decided_at)});
}

void Append(const RunSpec& r, Arena& a, std::vector<Value>& c) {
  c.insert(c.end(),
           {Value::Of(r.id.AsBytes()), Value::Of(r.org.value()), Value::Of(CleanText(r.pipeline, a)), Value::Of(r.version),
            Value::Of(CleanText(r.schedule, a)), OptionalTime(r.slot), Value::Of(std::int64_t{r.generation}),
            Value::Of(CleanText(r.overlap, a)), Value::Of(CleanText(r.params, a)), Value::Of(r.created_at)});
}

void Append(const JobSpec& j, Arena& a, std::vector<Value>& c) {
  static_assert(sizeof(JobId) == 16, "a list of ids is its bytes");
  const std::string& options = a.emplace_back(ToJson(j.options));
  const std::string_view list{reinterpret_cast<const char*>(j.depends_on.data()), j.depends_on.size() * sizeof(JobId)};
  c.insert(c.end(), {Value::Of(j.id.AsBytes()), Value::Of(j.org.value()), OptionalId(j.run), Value::Of(CleanText(j.stage, a)),
                     Value::Of(CleanText(j.kind, a)), Value::Of(CleanText(j.queue, a)), Value::Of(std::int64_t{j.priority}),
                     Value::Of(j.payload), Value::Of(list), Value::Of(CleanText(j.effect, a)), Value::Of(CleanText(j.root, a)),
                     Value::Of(std::int64_t{j.retry.max_attempts}), Value::Of(std::int64_t{j.retry.backoff_base.count()}),
                     Value::Of(std::int64_t{j.retry.backoff_cap.count()}), Value::Of(std::int64_t{j.timeout.count()}),
                     OptionalTime(j.run_at), Value::Of(j.submitted_at),
                     options.empty() ? Value{} : Value::Of(std::string_view(options))});
}

void Append(const AttemptRow& r, Arena& a, std::vector<Value>& c) {
  AppendReport(r.report, r.org, r.counters, a, c);
  c.insert(c.end(), {Value::Of(r.next_run_at), OptionalText(r.queue, a)});
}

void Append(const OutcomeRow& r, Arena& a, std::vector<Value>& c) {
  AppendReport(r.report, r.org, r.counters, a, c);
  c.insert(c.end(), {OptionalId(r.run), Value::Of(std::int64_t{static_cast<std::uint8_t>(r.state)}), Value::Of(r.recorded_at),
                     OptionalText(r.queue, a)});
}

void Append(const RunOutcomeRow& r, Arena& a, std::vector<Value>& c) {
  c.insert(c.end(),
           {Value::Of(r.run.AsBytes()), Value::Of(r.org.value()), Value::Of(std::int64_t{static_cast<std::uint8_t>(r.state)}),
            Value::Of(CleanText(r.reason, a)), Value::Of(r.finished_at)});
}

void Append(const CancelRow& r, Arena& a, std::vector<Value>& c) {
  c.insert(c.end(), {Value::Of(r.item.AsBytes()), Value::Of(std::int64_t{r.is_run}), Value::Of(r.org.value()),
                     Value::Of(CleanText(r.actor, a)), Value::Of(CleanText(r.reason, a)), Value::Of(r.requested_at)});
}

void Append(const QueueSettingRow& r, Arena& a, std::vector<Value>& c) {
  const QueueSettings& s = r.settings;
  c.insert(c.end(), {Value::Of(s.org.value()), Value::Of(CleanText(s.queue, a)), Value::Of(s.revision),
                     Value::Of(std::int64_t{r.shard.value()}), Value::Of(std::string_view(a.emplace_back(ToJson(s)))),
                     Value::Of(CleanText(r.actor, a)), Value::Of(r.at)});
}

void Append(const BackfillRow& r, Arena& a, std::vector<Value>& c) {
  c.insert(c.end(), {Value::Of(r.id.AsBytes()), Value::Of(r.org.value()), Value::Of(CleanText(r.pipeline, a)),
                     Value::Of(CleanText(r.schedule, a)), Value::Of(r.from), Value::Of(r.to), Value::Of(r.until),
                     Value::Of(std::int64_t{r.generation}), Value::Of(r.version), Value::Of(CleanText(r.options, a)),
                     Value::Of(CleanText(r.actor, a)), Value::Of(r.created_at)});
}

void Append(const DeadActionRow& r, Arena& a, std::vector<Value>& c) {
  c.insert(c.end(),
           {Value::Of(r.job.AsBytes()), Value::Of(r.org.value()), Value::Of(std::int64_t{static_cast<std::uint8_t>(r.action)}),
            OptionalId(r.new_job), Value::Of(CleanText(r.actor, a)), Value::Of(CleanText(r.reason, a)), Value::Of(r.at)});
}

void Append(const PrunedChain& r, Arena& a, std::vector<Value>& c) {
  c.insert(c.end(), {Value::Of(r.writer.AsBytes()), Value::Of(static_cast<std::int64_t>(r.number)),
                     Value::Of(static_cast<std::int64_t>(r.through)), Value::Of(BytesOf(r.through_hash)),
                     Value::Of(static_cast<std::int64_t>(r.rows)), Value::Of(BytesOf(r.leaves)), Value::Of(r.before),
                     Value::Of(r.at), Value::Of(CleanText(r.actor, a)), Value::Of(r.signature)});
}

PipelineVersion PipelineVersionFrom(std::span<const Value> c) {
  return {OrgId{c[0].number}, Str(c[1]), c[2].number, Str(c[3]), Str(c[4]), Str(c[5]), TimeOf(c[6])};
}

SlotRow SlotFrom(std::span<const Value> c) {
  SlotRow s;
  s.key = {OrgId{c[0].number}, Str(c[1]), Str(c[2]), TimeOf(c[3]), U32(c[4])};
  s.state = Str(c[5]);
  s.reason = Str(c[6]);
  s.run = IdFrom<RunId>(c[7]);
  s.decided_at = TimeOf(c[8]);
  return s;
}

RunSpec RunFrom(std::span<const Value> c) {
  RunSpec r;
  r.id = RunId{UuidOf(c[0])};
  r.org = OrgId{c[1].number};
  r.pipeline = Str(c[2]);
  r.version = c[3].number;
  r.schedule = Str(c[4]);
  r.slot = TimeFrom(c[5]);
  r.generation = U32(c[6]);
  r.overlap = Str(c[7]);
  r.params = Str(c[8]);
  r.created_at = TimeOf(c[9]);
  return r;
}

JobSpec JobFrom(std::span<const Value> c) {
  JobSpec j;
  j.id = JobId{UuidOf(c[0])};
  j.org = OrgId{c[1].number};
  j.run = IdFrom<RunId>(c[2]);
  j.stage = Str(c[3]);
  j.kind = Str(c[4]);
  j.queue = Str(c[5]);
  j.priority = static_cast<int>(c[6].number);
  j.payload = Str(c[7]);
  for (std::size_t at = 0; at + 16 <= c[8].bytes.size(); at += 16)
    j.depends_on.push_back(JobId{*Uuid::FromBytes(c[8].bytes.substr(at, 16))});
  j.effect = Str(c[9]);
  j.root = Str(c[10]);
  j.retry = {static_cast<int>(c[11].number), Millis{c[12].number}, Millis{c[13].number}};
  j.timeout = Millis{c[14].number};
  j.run_at = TimeFrom(c[15]);
  j.submitted_at = TimeOf(c[16]);
  // Written by this code and checked by the audit record: text that is no options was edited behind its back.
  if (!c[17].null)
    if (auto options = JobOptionsFromJson(c[17].bytes)) j.options = std::move(*options);
  return j;
}

AttemptRow AttemptFrom(std::span<const Value> c) {
  return {ReportFrom(c), OrgId{c[2].number}, CountersFrom(c), TimeOf(c[kReportColumns]), Str(c[kReportColumns + 1])};
}

OutcomeRow OutcomeFrom(std::span<const Value> c) {
  return {ReportFrom(c),
          OrgId{c[2].number},
          IdFrom<RunId>(c[kReportColumns]),
          static_cast<JobState>(c[kReportColumns + 1].number),
          CountersFrom(c),
          TimeOf(c[kReportColumns + 2]),
          Str(c[kReportColumns + 3])};
}

RunOutcomeRow RunOutcomeFrom(std::span<const Value> c) {
  return {RunId{UuidOf(c[0])}, OrgId{c[1].number}, static_cast<RunState>(c[2].number), Str(c[3]), TimeOf(c[4])};
}

CancelRow CancelFrom(std::span<const Value> c) {
  return {UuidOf(c[0]), c[1].number != 0, OrgId{c[2].number}, Str(c[3]), Str(c[4]), TimeOf(c[5])};
}

Result<QueueSettings> QueueSettingsFrom(std::span<const Value> c) {
  auto settings = QueueSettingsFromJson(c[4].bytes);
  if (!settings)
    return Fail(ErrorCode::kCorrupt, "queue '{}' of org {}, revision {}: {}", c[1].bytes, c[0].number, c[2].number,
                settings.error().message);
  settings->org = OrgId{c[0].number};
  settings->queue = Str(c[1]);
  settings->revision = c[2].number;
  return settings;
}

BackfillRow BackfillFrom(std::span<const Value> c) {
  BackfillRow r;
  r.id = BackfillId{UuidOf(c[0])};
  r.org = OrgId{c[1].number};
  r.pipeline = Str(c[2]);
  r.schedule = Str(c[3]);
  r.from = TimeOf(c[4]);
  r.to = TimeOf(c[5]);
  r.until = TimeOf(c[6]);
  r.generation = U32(c[7]);
  r.version = c[8].number;
  r.options = Str(c[9]);
  r.actor = Str(c[10]);
  r.created_at = TimeOf(c[11]);
  return r;
}

DeadActionRow DeadActionFrom(std::span<const Value> c) {
  return {JobId{UuidOf(c[0])}, OrgId{c[1].number}, static_cast<DeadAction>(c[2].number), IdFrom<JobId>(c[3]), Str(c[4]),
          Str(c[5]),           TimeOf(c[6])};
}

PrunedChain PrunedChainFrom(std::span<const Value> c) {
  PrunedChain p;
  p.writer = AuditWriterId{UuidOf(c[0])};
  p.number = static_cast<std::uint64_t>(c[1].number);
  p.through = static_cast<std::uint64_t>(c[2].number);
  p.through_hash = DigestFrom(c[3]);
  p.rows = static_cast<std::uint64_t>(c[4].number);
  p.leaves = DigestFrom(c[5]);
  p.before = TimeOf(c[6]);
  p.at = TimeOf(c[7]);
  p.actor = Str(c[8]);
  p.signature = Str(c[9]);
  return p;
}

Digest LeafOf(Table table, std::span<const Value> cells) {
  const TableDef& def = DefOf(table);
  CanonicalRow row(def.name);
  for (std::size_t i = 0; i < def.columns.size(); ++i) {
    const ColumnType type = def.columns[i].type;
    if (cells[i].null && def.columns[i].later) continue;
    if (cells[i].null)
      row.AddNull();
    else if (type == kInt || type == kBool || type == kTime)
      row.Add(cells[i].number);
    else
      row.Add(cells[i].bytes);
  }
  return row.Leaf();
}

std::string KeyText(Table table, std::span<const Value> cells) {
  const TableDef& def = DefOf(table);
  std::string text(def.name);
  for (std::size_t i = 0; i < def.key_columns; ++i) {
    text += ' ';
    switch (def.columns[i].type) {
      case kUuid: text += UuidOf(cells[i]).ToString(); break;
      case kTime: text += ToRfc3339(TimeOf(cells[i])); break;
      case kInt: text += std::to_string(cells[i].number); break;
      default: text += cells[i].bytes; break;
    }
  }
  return text;
}

}  // namespace millrace::ledger
