#include <fmt/format.h>

#include "common/base/failpoint.h"
#include "common/base/history.h"
#include "common/base/log.h"
#include "common/ledger/sql_ledger.h"

// A PostgreSQL ledger may be far away: there each of these is one statement, a function that the migrations make. The SQLite
// one is a call away, and takes the steps one by one.

namespace millrace::ledger {
namespace {

constexpr std::chrono::hours kPresenceKept{1};  // rows of brokers that died without saying goodbye
constexpr std::int64_t kTtlMs = Millis{kOwnershipTtl}.count();

Error OwnedBy(ShardId shard, std::string_view name, const Uuid& owner, std::int64_t age_ms) {
  return {ErrorCode::kConflict,
          fmt::format("shard {} is owned by '{}' ({}), renewed {} ms ago", shard.value(), name, owner.ToString(), age_ms)};
}

Result<Epoch> TakeAtOnce(SqlStore& store, ShardId shard, OwnerId owner, std::string_view owner_name, MonoTime deadline) {
  Arena arena;
  MILLRACE_TRY_ASSIGN(
      const Rows rows,
      store.Run("select taken, owner, owner_name, age_ms, kept_by from take_shard($1, $2, $3, $4)",
                Params().Int(shard.value()).Id(owner.uuid).Text(CleanText(owner_name, arena)).Int(kTtlMs), deadline));
  const auto row = rows[0];
  if (!row[0].null) return Epoch{static_cast<std::uint32_t>(row[0].number)};
  Error error = OwnedBy(shard, row[2].bytes, UuidOf(row[1]), row[3].number);
  if (!row[4].bytes.empty()) {
    error.message += fmt::format("; it is overdue, but {}", row[4].bytes);
    LogWarn("{}", error.message);
  }
  return std::unexpected(std::move(error));
}

Result<void> RenewAtOnce(SqlStore& store, std::span<const ShardHold> holds, OwnerId owner, MonoTime deadline) {
  Params params;
  std::vector<std::int64_t> shards, epochs;
  for (const ShardHold& hold : holds) {
    shards.push_back(hold.shard.value());
    epochs.push_back(hold.epoch.value());
  }
  auto renewed = store.Run("select renew_shards($1, $2, $3)", params.Ints(shards).Ints(epochs).Id(owner.uuid), deadline);
  if (!renewed && renewed.error().code == ErrorCode::kStale && MILLRACE_MUTANT("mutant.no_epoch")) return {};
  MILLRACE_TRY(std::move(renewed));
  return {};
}

}  // namespace

Result<Epoch> SqlLedger::TakeShard(ShardId shard, OwnerId owner, std::string_view owner_name, MonoTime deadline) {
  auto taken = store_->HasFunctions() ? TakeAtOnce(*store_, shard, owner, owner_name, deadline)
                                      : TakeStepByStep(shard, owner, owner_name, deadline);
  if (taken && history::On())
    history::Write("owner:" + owner.ToString(), "own", history::Type::kOk,
                   fmt::format(R"("shard":{},"epoch":{})", shard.value(), taken->value()));
  return taken;
}

Result<Epoch> SqlLedger::TakeStepByStep(ShardId shard, OwnerId owner, std::string_view owner_name, MonoTime deadline) {
  Epoch taken;
  const auto body = [&]() -> Result<void> {
    MILLRACE_TRY(
        store_->Run("insert into shard_owner (shard, owner, owner_name, epoch) values ($1, null, '', 0) "
                    "on conflict (shard) do nothing",
                    Params().Int(shard.value()), deadline));
    // The lock waits for the transactions that the present owner has under way.
    const std::string sql =
        "select owner, owner_name, epoch from shard_owner where shard = $1" + std::string(store_->ForUpdate());
    MILLRACE_TRY_ASSIGN(const Rows row, store_->Run(sql, Params().Int(shard.value()), deadline));
    MILLRACE_TRY_ASSIGN(const Rows renewal, store_->Run("select renewed_at from shard_renewal where shard = $1",
                                                        Params().Int(shard.value()), deadline));
    MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
    if (row.empty()) return Fail(ErrorCode::kCorrupt, "shard {}: its ownership row is gone", shard.value());
    const bool owned = !row[0][0].null && UuidOf(row[0][0]) != owner.uuid;
    if (owned && !renewal.empty()) {
      // A renewal that lies far ahead was made before the ledger's clock was set back: it says nothing about now.
      const auto age = now - TimeOf(renewal[0][0]);
      if (age < kOwnershipTtl && age > -kOwnershipTtl)
        return std::unexpected(OwnedBy(shard, row[0][1].bytes, UuidOf(row[0][0]), std::chrono::floor<Millis>(age).count()));
    }
    const std::int64_t epoch = row[0][2].number + 1;
    Arena arena;
    MILLRACE_TRY(store_->Run("update shard_owner set owner = $2, owner_name = $3, epoch = $4 where shard = $1",
                             Params().Int(shard.value()).Id(owner.uuid).Text(CleanText(owner_name, arena)).Int(epoch),
                             deadline));
    MILLRACE_TRY(
        store_->Run("insert into shard_renewal (shard, owner, epoch, renewed_at) values ($1, $2, $3, $4) on conflict (shard) "
                    "do update set owner = excluded.owner, epoch = excluded.epoch, renewed_at = excluded.renewed_at",
                    Params().Int(shard.value()).Id(owner.uuid).Int(epoch).Time(now), deadline));
    taken = Epoch{static_cast<std::uint32_t>(epoch)};
    return {};
  };
  MILLRACE_TRY(store_->Transact(body, deadline));
  return taken;
}

Result<void> SqlLedger::RenewShards(std::span<const ShardHold> holds, OwnerId owner, MonoTime deadline) {
  if (holds.empty()) return {};
  if (store_->HasFunctions()) return RenewAtOnce(*store_, holds, owner, deadline);
  return store_->Transact(
      [&]() -> Result<void> {
        MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
        for (const ShardHold& hold : holds) {
          MILLRACE_TRY_ASSIGN(
              const Rows done,
              store_->Run("update shard_renewal set renewed_at = $4 where shard = $1 and owner = $2 and epoch = $3 and exists "
                          "(select 1 from shard_owner o where o.shard = $1 and o.owner = $2 and o.epoch = $3)",
                          Params().Int(hold.shard.value()).Id(owner.uuid).Int(hold.epoch.value()).Time(now), deadline));
          if (done.changed != 1 && !MILLRACE_MUTANT("mutant.no_epoch"))
            return Fail(ErrorCode::kStale, "shard {}: epoch {} of this owner is stale, somebody took the shard",
                        hold.shard.value(), hold.epoch.value());
        }
        return {};
      },
      deadline);
}

Result<void> SqlLedger::ReleaseShards(std::span<const ShardHold> holds, OwnerId owner, MonoTime deadline) {
  if (holds.empty()) return {};
  // One that somebody took is his now: nothing to release.
  std::string held;
  Params params;
  params.Id(owner.uuid);
  for (const ShardHold& hold : holds) {
    const std::size_t at = params.all().size();
    held += fmt::format("{}(shard = ${} and epoch = ${})", held.empty() ? "" : " or ", at + 1, at + 2);
    params.Int(hold.shard.value()).Int(hold.epoch.value());
  }
  MILLRACE_TRY(store_->Run("update shard_owner set owner = null where owner = $1 and (" + held + ")", params, deadline));
  return {};
}

Result<std::vector<ShardStatus>> SqlLedger::Shards(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select o.shard, o.owner, o.owner_name, o.epoch, r.renewed_at from shard_owner o "
                                  "left join shard_renewal r on r.shard = o.shard order by o.shard",
                                  {}, deadline));
  std::vector<ShardStatus> all;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = rows[i];
    ShardStatus s;
    s.shard = ShardId{static_cast<std::uint16_t>(row[0].number)};
    if (!row[1].null) s.owner = OwnerId{UuidOf(row[1])};
    s.owner_name = row[2].bytes;
    s.epoch = Epoch{static_cast<std::uint32_t>(row[3].number)};
    s.renewed_at = TimeOf(row[4]);
    all.push_back(std::move(s));
  }
  return all;
}

Result<std::vector<OwnerId>> SqlLedger::AnnounceBroker(OwnerId owner, const BrokerAddress& broker, bool leaving,
                                                       MonoTime deadline) {
  std::vector<OwnerId> alive;
  if (store_->HasFunctions()) {
    Arena arena;
    MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select * from announce_broker($1, $2, $3, $4 <> 0, $5, $6)",
                                                     Params()
                                                         .Id(owner.uuid)
                                                         .Text(CleanText(broker.name, arena))
                                                         .Text(CleanText(broker.clients, arena))
                                                         .Int(leaving ? 1 : 0)
                                                         .Int(kTtlMs)
                                                         .Int(Millis{kPresenceKept}.count()),
                                                     deadline));
    for (std::size_t i = 0; i < rows.size(); ++i) alive.push_back(OwnerId{UuidOf(rows[i][0])});
    return alive;
  }
  const auto body = [&]() -> Result<void> {
    alive.clear();
    MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
    if (leaving) {
      MILLRACE_TRY(store_->Run("delete from broker_presence where owner = $1", Params().Id(owner.uuid), deadline));
    } else {
      Arena arena;
      MILLRACE_TRY(store_->Run(
          "insert into broker_presence (owner, name, clients, renewed_at) values ($1, $2, $3, $4) on conflict "
          "(owner) do update set renewed_at = excluded.renewed_at",
          Params().Id(owner.uuid).Text(CleanText(broker.name, arena)).Text(CleanText(broker.clients, arena)).Time(now),
          deadline));
    }
    // Who lies far ahead said so before the ledger's clock was set back: he says it again in a second, if he lives.
    MILLRACE_TRY_ASSIGN(
        const Rows rows,
        store_->Run("select owner from broker_presence where renewed_at > $1 and renewed_at < $2 order by owner",
                    Params().Time(now - kOwnershipTtl).Time(now + kOwnershipTtl), deadline));
    for (std::size_t i = 0; i < rows.size(); ++i) alive.push_back(OwnerId{UuidOf(rows[i][0])});
    MILLRACE_TRY(
        store_->Run("delete from broker_presence where renewed_at < $1", Params().Time(now - kPresenceKept), deadline));
    return {};
  };
  MILLRACE_TRY(store_->Transact(body, deadline));
  return alive;
}

Result<std::map<OwnerId, BrokerAddress>> SqlLedger::LivingBrokers(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select owner, name, clients from broker_presence where renewed_at > $1 and renewed_at < $2",
                                  Params().Time(now - kOwnershipTtl).Time(now + kOwnershipTtl), deadline));
  std::map<OwnerId, BrokerAddress> all;
  for (std::size_t i = 0; i < rows.size(); ++i)
    all[OwnerId{UuidOf(rows[i][0])}] = {.name = std::string(rows[i][1].bytes), .clients = std::string(rows[i][2].bytes)};
  return all;
}

Result<Ledger::Leadership> SqlLedger::TryLead(OwnerId candidate, std::string_view name, Millis ttl, MonoTime deadline) {
  Leadership answer;
  if (store_->HasFunctions()) {
    Arena arena;
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select leads, term, holder_name from try_lead($1, $2, $3)",
                                    Params().Id(candidate.uuid).Text(CleanText(name, arena)).Int(ttl.count()), deadline));
    return Leadership{rows[0][0].number != 0, static_cast<std::uint64_t>(rows[0][1].number), std::string(rows[0][2].bytes)};
  }
  const auto body = [&]() -> Result<void> {
    MILLRACE_TRY_ASSIGN(WallTime now, store_->Now(deadline));
    Arena arena;
    const std::string_view clean = CleanText(name, arena);
    MILLRACE_TRY_ASSIGN(const Rows made,
                        store_->Run("insert into leader (id, holder, name, epoch, expires_at) values (1, $1, $2, 1, $3) "
                                    "on conflict (id) do nothing",
                                    Params().Id(candidate.uuid).Text(clean).Time(now + ttl), deadline));
    if (made.changed == 1) {
      answer = {true, 1, std::string(clean)};
      return {};
    }
    const std::string sql =
        "select holder, name, epoch, expires_at from leader where id = 1" + std::string(store_->ForUpdate());
    MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(sql, {}, deadline));
    if (rows.empty()) return Fail(ErrorCode::kCorrupt, "the leader row is gone");
    MILLRACE_TRY_ASSIGN(now, store_->Now(deadline));
    const auto row = rows[0];
    const bool mine = UuidOf(row[0]) == candidate.uuid;
    const bool clock_was_set_back = TimeOf(row[3]) > now + 2 * ttl;
    if (!mine && TimeOf(row[3]) > now && !clock_was_set_back) {
      answer = {false, static_cast<std::uint64_t>(row[2].number), std::string(row[1].bytes)};
      return {};
    }
    const std::int64_t epoch = row[2].number + (mine ? 0 : 1);
    MILLRACE_TRY(store_->Run("update leader set holder = $1, name = $2, epoch = $3, expires_at = $4 where id = 1",
                             Params().Id(candidate.uuid).Text(clean).Int(epoch).Time(now + ttl), deadline));
    answer = {true, static_cast<std::uint64_t>(epoch), std::string(clean)};
    return {};
  };
  MILLRACE_TRY(store_->Transact(body, deadline));
  return answer;
}

}  // namespace millrace::ledger
