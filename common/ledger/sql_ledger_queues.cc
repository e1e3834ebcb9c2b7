// Settings of queues.
#include <utility>

#include "common/base/log.h"
#include "common/ledger/sql_ledger.h"
#include "common/model/whole_org.h"

namespace millrace::ledger {

Result<QueueSettings> SqlLedger::PutQueueSettings(const QueueSettings& settings, std::string_view actor, MonoTime deadline) {
  MILLRACE_TRY(Validate(settings));
  MILLRACE_TRY_ASSIGN(
      const Rows newest,
      store_->Run("select " + store_->Columns(Table::kQueueSetting, "q") +
                      " from queue_setting q where q.org = $1 and q.queue = $2 order by q.revision desc limit 1",
                  Params().Int(settings.org.value()).Text(settings.queue), deadline));
  const std::int64_t revision = newest.size() == 0 ? 0 : newest[0][2].number;
  if (revision != settings.revision)
    return Fail(ErrorCode::kConflict, "queue '{}' is at revision {}, not {}: look at it and set it again", settings.queue,
                revision, settings.revision);
  QueueSettings before;
  if (newest.size() > 0) {
    auto read = QueueSettingsFrom(newest[0]);
    before = read ? *std::move(read) : QueueSettings{};
    if (!read) before.durability = Durability::kRedis;  // it may have been
  }
  MILLRACE_TRY_ASSIGN(const std::uint16_t shards, ShardCount(deadline));
  MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
  QueueSettingRow row{.settings = settings, .shard = ShardOf(settings.org, shards), .actor = std::string(actor), .at = now};
  ++row.settings.revision;
  NoteClassChange(before, now, row.settings);
  Batch batch;
  batch.queue_settings.push_back(&row);
  MILLRACE_TRY(Write(batch, deadline));
  return std::move(row.settings);
}

Result<std::vector<QueueSettings>> SqlLedger::QueuesOf(std::optional<OrgId> org, std::optional<ShardId> shard,
                                                       MonoTime deadline) {
  std::string sql = "select " + store_->Columns(Table::kQueueSetting, "q") +
                    " from queue_setting q where q.revision = (select max(n.revision) from queue_setting n where n.org = q.org "
                    "and n.queue = q.queue)";
  Params params;
  int next = 1;
  if (org) {
    sql += " and q.org = $" + std::to_string(next++);
    params.Int(org->value());
  }
  if (shard) {
    sql += " and q.shard = $" + std::to_string(next++);
    params.Int(shard->value());
  }
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(sql + " order by q.org, q.queue", params, deadline));
  std::vector<QueueSettings> all;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    auto settings = QueueSettingsFrom(rows[i]);
    if (!settings) {
      // Of a newer version, or edited behind our back: what they were to limit must not run without limits.
      const bool whole_org = rows[i][1].bytes == kWholeOrg;
      LogWarn("{}: {}: set it again", settings.error().message,
              whole_org ? "the org has no budget" : "the queue is held as if it were paused");
      QueueSettings held;
      held.org = OrgId{rows[i][0].number};
      held.queue = rows[i][1].bytes;
      held.revision = rows[i][2].number;
      held.paused = !whole_org;
      settings = std::move(held);
    }
    all.push_back(std::move(*settings));
  }
  return all;
}

}  // namespace millrace::ledger
