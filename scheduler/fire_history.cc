#include "scheduler/fire_history.h"

#include <fmt/format.h>

#include <atomic>
#include <set>
#include <string>
#include <tuple>

#include "common/base/history.h"

namespace millrace::scheduler {
namespace {

using history::Type;
using Key = std::tuple<OrgId, std::string, std::string, WallTime, std::uint32_t>;

Key KeyOf(const SlotKey& k) { return {k.org, k.pipeline, k.schedule, k.slot, k.generation}; }

std::string FieldsOf(const FireBatch& batch, const std::set<Key>& without, std::uint64_t number) {
  std::string slots;
  for (const SlotDecision& d : batch.decisions) {
    const SlotKey& k = d.slot.key;
    if (without.contains(KeyOf(k))) continue;
    slots +=
        fmt::format("{}[{},{},{},{},{}]", slots.empty() ? "" : ",", history::Quoted(k.pipeline), history::Quoted(k.schedule),
                    ToUnixMicros(k.slot), k.generation, d.slot.run ? fmt::format(R"("{}")", d.slot.run->ToString()) : "null");
  }
  return fmt::format(R"("n":{},"slots":[{}])", number, slots);
}

}  // namespace

Result<FireResult> FireRecorded(Ledger& ledger, const FireBatch& batch, OwnerId who, MonoTime deadline) {
  if (!history::On() || batch.decisions.empty()) return ledger.Fire(batch, deadline);
  static std::atomic<std::uint64_t> fires{0};
  const std::uint64_t number = ++fires;
  const std::string name = "scheduler:" + who.ToString();
  history::Write(name, "fire", Type::kInvoke, FieldsOf(batch, {}, number));
  auto fired = ledger.Fire(batch, deadline);
  if (fired) {
    std::set<Key> before;
    for (const SlotKey& key : fired->already_decided) before.insert(KeyOf(key));
    history::Write(name, "fire", Type::kOk, FieldsOf(batch, before, number));
  } else {
    const bool unknown = fired.error().code == ErrorCode::kMaybeApplied;
    history::Write(name, "fire", unknown ? Type::kUnknown : Type::kFail, fmt::format(R"("n":{})", number));
  }
  return fired;
}

}  // namespace millrace::scheduler
