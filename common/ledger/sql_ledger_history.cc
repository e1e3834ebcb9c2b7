#include <fmt/format.h>

#include <atomic>
#include <utility>

#include "common/base/history.h"
#include "common/ledger/sql_ledger.h"

// What this process wants to write, and what came of it, for the checker. "ok" names the rows that really went in.

namespace millrace::ledger {
namespace {

using history::Type;

template <class Items, class Text>
void AddList(std::string& out, std::string_view name, const Items& items, Text text) {
  if (items.empty()) return;
  out += fmt::format(R"(,"{}":[)", name);
  bool first = true;
  for (const auto& item : items) {
    if (!std::exchange(first, false)) out += ',';
    out += text(item);
  }
  out += ']';
}

std::string FieldsOf(const Batch& batch, std::uint64_t number) {
  std::string out = fmt::format(R"("n":{})", number);
  AddList(out, "holds", batch.holds,
          [](const ShardHold& hold) { return fmt::format("[{},{}]", hold.shard.value(), hold.epoch.value()); });
  AddList(out, "runs", batch.runs, [](const RunSpec* run) { return fmt::format(R"("{}")", run->id.ToString()); });
  AddList(out, "jobs", batch.jobs, [](const JobSpec* job) { return fmt::format(R"("{}")", job->id.ToString()); });
  AddList(out, "attempts", batch.attempts, [](const AttemptRow* row) {
    return fmt::format(R"(["{}",{},"{}"])", row->report.job.ToString(), row->report.token.value(), Name(row->report.end));
  });
  AddList(out, "outcomes", batch.outcomes, [](const OutcomeRow* row) {
    return fmt::format(R"(["{}",{},"{}"])", row->report.job.ToString(), row->report.token.value(), Name(row->state));
  });
  AddList(out, "slots", batch.slots, [](const SlotRow* row) {
    return fmt::format("[{},{},{},{},{}]", history::Quoted(row->key.pipeline), history::Quoted(row->key.schedule),
                       ToUnixMicros(row->key.slot), row->key.generation,
                       row->run ? fmt::format(R"("{}")", row->run->ToString()) : "null");
  });
  return out;
}

Type TypeOf(const Result<void>& written) {
  if (written) return Type::kOk;
  return written.error().code == ErrorCode::kMaybeApplied ? Type::kUnknown : Type::kFail;
}

}  // namespace

Result<void> SqlLedger::Write(Batch& batch, MonoTime deadline) {
  if (!history::On()) return WriteRows(batch, deadline);
  static std::atomic<std::uint64_t> writes{0};
  const std::uint64_t number = ++writes;
  const std::string who = "ledger:" + options_.writer.ToString();
  history::Write(who, "write", Type::kInvoke, FieldsOf(batch, number));
  Result<void> written = WriteRows(batch, deadline);
  history::Write(who, "write", TypeOf(written), written ? FieldsOf(batch, number) : fmt::format(R"("n":{})", number));
  return written;
}

}  // namespace millrace::ledger
