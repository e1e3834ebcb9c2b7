#include "common/queue/sqlite_queue.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "common/drivers/sqlite.h"

namespace millrace {
namespace {

using sqlite::Blob;

// Line numbers keep the ready rows small; they are never reused within the file (autoincrement).
constexpr const char* kSchema = R"sql(
create table if not exists shard(shard integer primary key, epoch integer not null);
create table if not exists line(no integer primary key autoincrement, shard integer not null, name blob not null, unique(shard, name));
create table if not exists ready(line integer not null, seq integer not null, id blob not null, body blob not null,
                                 expires_at integer, primary key(line, seq)) without rowid;
create index if not exists ready_expiry on ready(expires_at) where expires_at is not null;
create table if not exists due(shard integer not null, run_at integer not null, line blob not null, id blob not null,
                               body blob not null, expires_at integer, primary key(shard, run_at, line, id)) without rowid;
create index if not exists due_expiry on due(shard, expires_at) where expires_at is not null;
create index if not exists ready_id on ready(id);
create index if not exists due_id on due(id);
create table if not exists flight(shard integer not null, id blob not null, primary key(shard, id)) without rowid;
create table if not exists kept(shard integer not null, id blob not null, line blob not null, body blob not null,
                                primary key(shard, id)) without rowid;
)sql";
constexpr std::size_t kClaimBytesMax = 16u << 20;
constexpr std::size_t kTakePage = 4000, kTakeLines = 1000;

// Tables of versions before this one had no kept lines: all they have is rebuilt from the ledger, so such a file starts anew.
constexpr std::int64_t kSchemaVersion = 3;
constexpr const char* kDropAll =
    "drop table if exists shard; drop table if exists line; drop table if exists ready; drop table if exists due; "
    "drop table if exists flight; drop table if exists kept";

std::int64_t MicrosOr(const std::optional<WallTime>& time, std::int64_t otherwise) {
  return time ? ToUnixMicros(*time) : otherwise;
}
constexpr std::int64_t kNever = -1;  // becomes null

class SqliteQueue final : public JobQueue {
 public:
  explicit SqliteQueue(sqlite::Database database) : db_(std::move(database)) {}

  std::vector<Result<QueueReply>> Execute(std::span<const QueueOp> ops) override {
    std::vector<Result<QueueReply>> results;
    const Result<void> done = RunAll(ops, results);
    if (!done) return {ops.size(), std::unexpected(done.error())};
    return results;
  }

  Result<QueueDepth> Depth(ShardId shard) override {
    QueueDepth depth;
    const auto count = [&](std::string_view sql, std::uint64_t& out) -> Result<void> {
      MILLRACE_TRY_ASSIGN(const std::int64_t n, db_.QueryInt64(sql, shard.value()));
      out = static_cast<std::uint64_t>(n);
      return {};
    };
    MILLRACE_TRY(count("select count(*) from ready where line in (select no from line where shard = ?)", depth.ready));
    MILLRACE_TRY(count("select count(*) from due where shard = ?", depth.scheduled));
    MILLRACE_TRY(count("select (select count(*) from flight where shard = ?1) + (select count(*) from kept where shard = ?1)",
                       depth.in_flight));
    return depth;
  }

 private:
  // An operation that is refused (kStale, kWiped) has written nothing; any other failure ends the whole transaction.
  Result<void> RunAll(std::span<const QueueOp> ops, std::vector<Result<QueueReply>>& results) {
    MILLRACE_TRY_ASSIGN(sqlite::Transaction transaction, sqlite::Transaction::Begin(db_));
    for (const QueueOp& op : ops) {
      Result<QueueReply> reply = std::visit([this](const auto& each) { return Fenced(each); }, op);
      if (!reply && reply.error().code != ErrorCode::kStale && reply.error().code != ErrorCode::kWiped)
        return std::unexpected(std::move(reply.error()));
      results.push_back(std::move(reply));
    }
    return transaction.Commit();
  }

  Result<std::optional<std::uint32_t>> StoredEpoch(ShardId shard) {
    MILLRACE_TRY_ASSIGN(sqlite::Statement row, db_.Prepare("select epoch from shard where shard = ?"));
    MILLRACE_TRY_ASSIGN(const bool found, row.Bind(1, shard.value()).Step());
    if (!found) return std::optional<std::uint32_t>{};
    return std::optional{static_cast<std::uint32_t>(row.Int64(0))};
  }

  template <class Op>
  Result<QueueReply> Fenced(const Op& op) {
    MILLRACE_TRY_ASSIGN(const std::optional<std::uint32_t> stored, StoredEpoch(op.shard));
    constexpr bool kTake = std::is_same_v<Op, queue_op::Take>;
    if (!stored && !kTake) return Fail(ErrorCode::kWiped, "sqlite queue: the shard has no epoch: take it anew");
    if (stored && (kTake ? *stored > op.epoch.value() : *stored != op.epoch.value()))
      return Fail(ErrorCode::kStale, "sqlite queue: stored epoch is {}", *stored);
    return Apply(op);
  }

  Result<QueueReply> Apply(const queue_op::Take& op) {
    const auto shard = op.shard.value();
    if (!op.cursor.empty()) return CountLines(op);
    // Lines without the mark of kept ones. A function could fail, and SQLite would copy every page before it changes it.
    MILLRACE_TRY(db_.Run(
        "delete from ready where line in (select no from line where shard = ? and (name < x'1e' or name >= x'1f'))", shard));
    MILLRACE_TRY(db_.Run("delete from line where shard = ? and (name < x'1e' or name >= x'1f')", shard));
    MILLRACE_TRY(db_.Run("delete from due where shard = ? and (line < x'1e' or line >= x'1f')", shard));
    MILLRACE_TRY_ASSIGN(const std::optional<std::uint32_t> stored, StoredEpoch(op.shard));
    const bool maybe_old = taken_.insert(op.shard).second;  // another process wrote it; the machine may have lost power since
    if (!stored) MILLRACE_TRY(db_.Run("delete from flight where shard = ?", shard));
    if (maybe_old || !stored) unbroken_since_[op.shard] = op.epoch;
    MILLRACE_TRY(db_.Run("insert into shard values (?, ?) on conflict(shard) do update set epoch = excluded.epoch", shard,
                         op.epoch.value()));
    return WhatStayed(op.shard, maybe_old);
  }

  // The lines behind the cursor: the number of one.
  Result<QueueReply> CountLines(const queue_op::Take& op) {
    MILLRACE_TRY_ASSIGN(const std::optional<std::uint32_t> stored, StoredEpoch(op.shard));
    if (stored != op.epoch.value() || !taken_.contains(op.shard))
      return Fail(ErrorCode::kWiped, "sqlite queue: the store was emptied or replaced while the shard was taken: take it anew");
    std::int64_t after = 0;
    std::from_chars(op.cursor.data(), op.cursor.data() + op.cursor.size(), after);
    QueueReply reply;
    reply.unbroken_since = unbroken_since_.at(op.shard);
    MILLRACE_TRY(ReadLines(op.shard, after, reply));
    MILLRACE_TRY_ASSIGN(reply.next_due, NextDue(op.shard));
    return reply;
  }

  Result<void> ReadLines(ShardId shard, std::int64_t after, QueueReply& reply) {
    MILLRACE_TRY_ASSIGN(sqlite::Statement rows,
                        db_.Prepare("select l.no, l.name, (select count(*) from ready r where r.line = l.no) from line l "
                                    "where l.shard = ? and l.no > ? order by l.no limit ?"));
    rows.BindAll(shard.value(), after, kTakeLines);
    std::size_t seen = 0;
    for (;; ++seen) {
      MILLRACE_TRY_ASSIGN(const bool row, rows.Step());
      if (!row) break;
      after = rows.Int64(0);
      const std::int64_t count = rows.Int64(2);
      if (count > 0) reply.kept.push_back({.line = rows.String(1), .count = static_cast<std::uint32_t>(count)});
    }
    if (seen == kTakeLines) reply.cursor = std::to_string(after);
    return {};
  }

  Result<QueueReply> WhatStayed(ShardId shard, bool maybe_old) {
    QueueReply reply;
    reply.maybe_old = maybe_old;
    reply.unbroken_since = unbroken_since_.at(shard);
    {
      MILLRACE_TRY_ASSIGN(sqlite::Statement rows, db_.Prepare("select id from flight where shard = ? order by id"));
      rows.BindAll(shard.value());
      while (true) {
        MILLRACE_TRY_ASSIGN(const bool row, rows.Step());
        if (!row) break;
        MILLRACE_TRY_ASSIGN(const Uuid id, Uuid::FromBytes(rows.View(0)));
        reply.in_flight.push_back(JobId{id});
      }
    }
    MILLRACE_TRY(ReadLines(shard, 0, reply));
    MILLRACE_TRY_ASSIGN(reply.next_due, NextDue(shard));
    MILLRACE_TRY_ASSIGN(sqlite::Statement rows, db_.Prepare("select id, line, body from kept where shard = ? order by id"));
    rows.BindAll(shard.value());
    for (std::size_t bytes = 0; bytes < kClaimBytesMax && reply.claimed.size() < kTakePage;) {
      MILLRACE_TRY_ASSIGN(const bool row, rows.Step());
      if (!row) break;
      MILLRACE_TRY_ASSIGN(const Uuid id, Uuid::FromBytes(rows.View(0)));
      reply.claimed.push_back(
          {.id = JobId{id}, .line = rows.String(1), .body = rows.String(2), .run_at = {}, .expires_at = {}});
      bytes += reply.claimed.back().body.size();
    }
    if (!reply.claimed.empty()) reply.cursor.clear();
    return reply;
  }

  Result<std::optional<WallTime>> NextDue(ShardId shard) {
    const Result<std::int64_t> next =
        db_.QueryInt64("select run_at from due where shard = ? order by run_at limit 1", shard.value());
    if (next) return std::optional(FromUnixMicros(*next));
    if (next.error().code == ErrorCode::kNotFound) return std::optional<WallTime>{};
    return std::unexpected(next.error());
  }

  Result<void> Fly(ShardId shard, const QueueEntry& entry) {
    const Blob id{entry.id.AsBytes()};
    if (!IsKeptLine(entry.line)) return db_.Run("insert or ignore into flight values (?, ?)", shard.value(), id);
    return db_.Run("insert or replace into kept values (?, ?, ?, ?)", shard.value(), id, Blob{entry.line}, Blob{entry.body});
  }

  // Out of flight, whichever way the line of the job is.
  Result<void> Land(ShardId shard, const JobId& id) {
    MILLRACE_TRY(db_.Run("delete from flight where shard = ? and id = ?", shard.value(), Blob{id.AsBytes()}));
    return db_.Run("delete from kept where shard = ? and id = ?", shard.value(), Blob{id.AsBytes()});
  }

  Result<std::int64_t> FindLine(ShardId shard, std::string_view name) {
    return db_.QueryInt64("select no from line where shard = ? and name = ?", shard.value(), Blob{name});
  }

  // One end of a line, where entries are pushed.
  struct LineEnd {
    std::string_view line;
    std::int64_t no = 0;
    std::int64_t seq = 0;  // of its last entry, or of its first
  };
  Result<LineEnd> FindEnd(ShardId shard, std::string_view line, bool front) {
    Result<std::int64_t> no = FindLine(shard, line);
    if (!no && no.error().code == ErrorCode::kNotFound) {
      MILLRACE_TRY(db_.Run("insert into line(shard, name) values (?, ?)", shard.value(), Blob{line}));
      no = db_.LastInsertRowid();
    }
    MILLRACE_TRY(no);
    MILLRACE_TRY_ASSIGN(const std::int64_t seq, db_.QueryInt64(front ? "select coalesce(min(seq), 0) from ready where line = ?"
                                                                     : "select coalesce(max(seq), 0) from ready where line = ?",
                                                               *no));
    return LineEnd{.line = line, .no = *no, .seq = seq};
  }

  // `end`: of the push before, if nothing else has changed the line since.
  Result<void> Push(ShardId shard, const QueueEntry& entry, bool front, std::optional<LineEnd>& end) {
    if (!end || end->line != entry.line) {
      MILLRACE_TRY_ASSIGN(end, FindEnd(shard, entry.line, front));
    }
    end->seq += front ? -1 : 1;
    return db_.Run("insert into ready values (?, ?, ?, ?, nullif(?, -1))", end->no, end->seq, Blob{entry.id.AsBytes()},
                   Blob{entry.body}, MicrosOr(entry.expires_at, kNever));
  }

  Result<void> Put(ShardId shard, const QueueEntry& entry, bool front, std::optional<LineEnd>& end) {
    if (!entry.run_at) return Push(shard, entry, front, end);
    return db_.Run("insert or replace into due values (?, ?, ?, ?, ?, nullif(?, -1))", shard.value(),
                   ToUnixMicros(*entry.run_at), Blob{entry.line}, Blob{entry.id.AsBytes()}, Blob{entry.body},
                   MicrosOr(entry.expires_at, kNever));
  }

  Result<QueueReply> Apply(const queue_op::Enqueue& op) {
    for (const QueueEntry& entry : op.passed) MILLRACE_TRY(Fly(op.shard, entry));
    std::optional<LineEnd> end;
    for (const QueueEntry& entry : op.entries) MILLRACE_TRY(Put(op.shard, entry, false, end));
    return QueueReply{};
  }

  Result<QueueReply> Apply(const queue_op::Requeue& op) {
    // From the back, so that the first given is the next claimed.
    std::optional<LineEnd> end;
    for (auto entry = op.entries.rbegin(); entry != op.entries.rend(); ++entry) {
      MILLRACE_TRY(Land(op.shard, entry->id));
      MILLRACE_TRY(Put(op.shard, *entry, true, end));
    }
    return QueueReply{};
  }

  Result<QueueReply> Apply(const queue_op::Finish& op) {
    for (const JobId& id : op.ids) MILLRACE_TRY(Land(op.shard, id));
    return QueueReply{};
  }

  Result<QueueReply> Apply(const queue_op::Claim& op) {
    QueueReply reply;
    const Result<std::int64_t> line = FindLine(op.shard, op.line);
    if (!line && line.error().code == ErrorCode::kNotFound) return reply;
    MILLRACE_TRY(line);
    std::int64_t last = 0;
    {
      MILLRACE_TRY_ASSIGN(sqlite::Statement rows,
                          db_.Prepare("select seq, id, body from ready where line = ? order by seq limit ?"));
      rows.BindAll(*line, op.max);
      std::size_t bytes = 0;
      while (bytes < kClaimBytesMax) {
        MILLRACE_TRY_ASSIGN(const bool row, rows.Step());
        if (!row) break;
        MILLRACE_TRY_ASSIGN(const Uuid id, Uuid::FromBytes(rows.View(1)));
        last = rows.Int64(0);
        reply.claimed.push_back({.id = JobId{id}, .line = op.line, .body = rows.String(2), .run_at = {}, .expires_at = {}});
        bytes += reply.claimed.back().body.size();
      }
    }
    if (reply.claimed.empty()) return reply;
    MILLRACE_TRY(db_.Run("delete from ready where line = ? and seq <= ?", *line, last));
    MILLRACE_TRY(db_.Run("delete from line where no = ?1 and not exists (select 1 from ready where line = ?1)", *line));
    for (const QueueEntry& entry : reply.claimed) MILLRACE_TRY(Fly(op.shard, entry));
    return reply;
  }

  Result<QueueReply> Apply(const queue_op::Promote& op) {
    QueueReply reply;
    std::vector<QueueEntry> due;
    {
      MILLRACE_TRY_ASSIGN(sqlite::Statement rows,
                          db_.Prepare("select run_at, line, id, body, expires_at from due where shard = ? and run_at <= ? "
                                      "order by run_at, line, id limit ?"));
      rows.BindAll(op.shard.value(), ToUnixMicros(op.now), op.max);
      for (std::size_t bytes = 0; bytes < kClaimBytesMax; bytes += due.back().body.size()) {
        MILLRACE_TRY_ASSIGN(const bool row, rows.Step());
        if (!row) break;
        MILLRACE_TRY_ASSIGN(const Uuid id, Uuid::FromBytes(rows.View(2)));
        due.push_back({.id = JobId{id},
                       .line = rows.String(1),
                       .body = rows.String(3),
                       .run_at = FromUnixMicros(rows.Int64(0)),
                       .expires_at = {}});
        if (!rows.IsNull(4)) due.back().expires_at = FromUnixMicros(rows.Int64(4));
      }
    }
    std::optional<LineEnd> end;
    for (const QueueEntry& entry : due) {
      MILLRACE_TRY(db_.Run("delete from due where shard = ? and run_at = ? and line = ? and id = ?", op.shard.value(),
                           ToUnixMicros(*entry.run_at), Blob{entry.line}, Blob{entry.id.AsBytes()}));
      MILLRACE_TRY(Push(op.shard, entry, false, end));
      Count(reply.promoted, entry.line);
    }
    MILLRACE_TRY_ASSIGN(reply.next_due, NextDue(op.shard));
    return reply;
  }

  static void Count(std::vector<LineCount>& counts, const std::string& line) {
    const auto count = std::ranges::find(counts, line, &LineCount::line);
    if (count != counts.end())
      ++count->count;
    else
      counts.push_back({.line = line, .count = 1});
  }

  // Ready and scheduled entries in one order; a place is (line number, seq) or (line, run_at).
  struct Waiting {
    QueueEntry entry;
    std::int64_t line = 0, at = 0;
    bool ready = false;
  };
  // Rows of (anything, line, id, body, ready, line number, seq or run_at).
  static Result<void> ReadWaiting(sqlite::Statement& rows, std::vector<Waiting>& found, std::size_t& bytes) {
    while (bytes < kClaimBytesMax) {
      MILLRACE_TRY_ASSIGN(const bool row, rows.Step());
      if (!row) break;
      MILLRACE_TRY_ASSIGN(const Uuid id, Uuid::FromBytes(rows.View(2)));
      found.push_back(
          {.entry = {.id = JobId{id}, .line = rows.String(1), .body = rows.String(3), .run_at = {}, .expires_at = {}},
           .line = rows.Int64(5),
           .at = rows.Int64(6),
           .ready = rows.Int64(4) != 0});
      bytes += found.back().entry.body.size();
    }
    return {};
  }
  Result<std::vector<Waiting>> FindExpired(const queue_op::ExpireDue& op) {
    std::vector<Waiting> found;
    MILLRACE_TRY_ASSIGN(
        sqlite::Statement rows,
        db_.Prepare(
            "select * from (select r.expires_at e, l.name, r.id, x'', 1, r.line, r.seq from ready r "
            "cross join line l on l.no = r.line where r.expires_at <= ?2 and l.shard = ?1 order by r.expires_at limit ?3) "
            "union all select * from (select expires_at e, line, id, x'', 0, 0, run_at from due "
            "where shard = ?1 and expires_at <= ?2 order by expires_at limit ?3) order by 1, 3 limit ?3"));
    rows.BindAll(op.shard.value(), ToUnixMicros(op.now), op.max);
    std::size_t bytes = 0;
    MILLRACE_TRY(ReadWaiting(rows, found, bytes));
    // The bodies afterwards: above they would be sorted, all of them.
    std::size_t fit = 0;
    for (; fit < found.size() && bytes < kClaimBytesMax; ++fit) {
      MILLRACE_TRY(ReadBody(op.shard, found[fit]));
      bytes += found[fit].entry.body.size();
    }
    found.resize(fit);
    return found;
  }
  Result<void> ReadBody(ShardId shard, Waiting& waiting) {
    MILLRACE_TRY_ASSIGN(
        sqlite::Statement row,
        db_.Prepare(waiting.ready ? "select body from ready where line = ?1 and seq = ?2"
                                  : "select body from due where shard = ?1 and run_at = ?2 and line = ?3 and id = ?4"));
    if (waiting.ready)
      row.BindAll(waiting.line, waiting.at);
    else
      row.BindAll(shard.value(), waiting.at, Blob{waiting.entry.line}, Blob{waiting.entry.id.AsBytes()});
    MILLRACE_TRY_ASSIGN(const bool found, row.Step());
    if (found) waiting.entry.body = row.String(0);
    return {};
  }

  Result<void> TakeOut(ShardId shard, std::vector<Waiting>& found, QueueReply& reply) {
    for (Waiting& waiting : found) {
      QueueEntry& entry = waiting.entry;
      if (waiting.ready) {
        MILLRACE_TRY(db_.Run("delete from ready where line = ? and seq = ?", waiting.line, waiting.at));
        Count(reply.lost, entry.line);
      } else {
        MILLRACE_TRY(db_.Run("delete from due where shard = ? and run_at = ? and line = ? and id = ?", shard.value(),
                             waiting.at, Blob{entry.line}, Blob{entry.id.AsBytes()}));
      }
      MILLRACE_TRY(Fly(shard, entry));
      reply.claimed.push_back(std::move(entry));
    }
    return {};
  }

  // By index, so a look is never long; what does not fit into one answer comes with the next.
  Result<QueueReply> Apply(const queue_op::Remove& op) {
    QueueReply reply;
    std::vector<Waiting> found;
    std::size_t bytes = 0;
    for (const JobId& id : op.ids) {
      if (bytes >= kClaimBytesMax) {
        reply.cursor = "more";
        break;
      }
      MILLRACE_TRY_ASSIGN(
          sqlite::Statement rows,
          db_.Prepare("select 0, l.name, r.id, r.body, 1, r.line, r.seq from ready r join line l on l.no = r.line "
                      "where r.id = ?2 and l.shard = ?1 "
                      "union all select 0, line, id, body, 0, 0, run_at from due where shard = ?1 and id = ?2"));
      rows.BindAll(op.shard.value(), Blob{id.AsBytes()});
      const std::size_t before = found.size();
      MILLRACE_TRY(ReadWaiting(rows, found, bytes));
      bool first = true;
      const auto other = [&](const Waiting& waiting) {
        const std::string& line = waiting.entry.line;
        if (op.lines.empty()) return !IsKeptLine(line) || (!op.org.empty() && OrgOfLine(line) != op.org);
        const bool here =
            first && !IsKeptLine(line) && (waiting.ready ? std::ranges::find(op.lines, line) != op.lines.end() : op.scheduled);
        first = first && !here;
        return !here;
      };
      found.erase(std::remove_if(found.begin() + static_cast<std::ptrdiff_t>(before), found.end(), other), found.end());
    }
    MILLRACE_TRY(TakeOut(op.shard, found, reply));
    return reply;
  }

  // By id, so that what moves from the schedule into its line is found in either. A cursor is the last id that was looked at.
  // The cross join makes the index of ids the outer loop: else all that waits is sorted for one page.
  Result<QueueReply> Apply(const queue_op::ListKept& op) {
    QueueReply reply;
    MILLRACE_TRY_ASSIGN(sqlite::Statement rows,
                        db_.Prepare("select * from (select r.id, l.name from ready r cross join line l on l.no = r.line "
                                    "where l.shard = ?1 and r.id > ?2 order by r.id limit ?3) "
                                    "union all select * from (select id, line from due where shard = ?1 and id > ?2 "
                                    "order by id limit ?3) order by 1 limit ?3"));
    rows.BindAll(op.shard.value(), Blob{op.cursor}, op.max);
    std::uint32_t seen = 0;
    std::optional<Uuid> last;
    for (;; ++seen) {
      MILLRACE_TRY_ASSIGN(const bool row, rows.Step());
      if (!row) break;
      MILLRACE_TRY_ASSIGN(last, Uuid::FromBytes(rows.View(0)));
      const std::string line = rows.String(1);
      if (!IsKeptLine(line) || OrgOfLine(line) != op.org) continue;
      reply.listed.push_back({.id = JobId{*last}, .line = line, .body = {}, .run_at = {}, .expires_at = {}});
    }
    if (seen == op.max && last) reply.cursor = last->AsBytes();
    return reply;
  }

  Result<QueueReply> Apply(const queue_op::ExpireDue& op) {
    QueueReply reply;
    MILLRACE_TRY_ASSIGN(std::vector<Waiting> found, FindExpired(op));
    MILLRACE_TRY(TakeOut(op.shard, found, reply));
    MILLRACE_TRY_ASSIGN(
        const std::int64_t next,
        db_.QueryInt64("select coalesce(min(e), -1) from (select min(r.expires_at) e from ready r join line l on l.no = r.line "
                       "where r.expires_at is not null and l.shard = ?1 "
                       "union all select min(expires_at) from due where shard = ?1 and expires_at is not null)",
                       op.shard.value()));
    if (next != kNever) reply.next_due = FromUnixMicros(next);
    return reply;
  }

  sqlite::Database db_;
  std::set<ShardId> taken_;  // by this object
  std::map<ShardId, Epoch> unbroken_since_;
};

Result<void> MakeSchema(sqlite::Database& db) {
  MILLRACE_TRY_ASSIGN(const std::int64_t version, db.QueryInt64("pragma user_version"));
  if (version > kSchemaVersion)
    return Fail(ErrorCode::kUnsupported, "sqlite queue: tables of version {}, this program knows up to {}", version,
                kSchemaVersion);
  if (version < kSchemaVersion) MILLRACE_TRY(db.Exec(kDropAll));
  MILLRACE_TRY(db.Exec(kSchema));
  return db.Exec(fmt::format("pragma user_version = {}", kSchemaVersion));
}

}  // namespace

Result<std::unique_ptr<JobQueue>> OpenSqliteQueue(const SqliteQueueOptions& options) {
  sqlite::Options how;
  how.synchronous = options.durable ? sqlite::Synchronous::kFull : sqlite::Synchronous::kNormal;
  auto database = sqlite::Database::Open(options.path, how);
  const Result<void> schema = database ? MakeSchema(*database) : Result<void>(std::unexpected(database.error()));
  if (!schema && schema.error().code == ErrorCode::kCorrupt)
    return Prefixed(schema.error(), "the queue file is damaged; delete it, it is rebuilt from the ledger");
  MILLRACE_TRY(schema);
  return std::unique_ptr<JobQueue>(std::make_unique<SqliteQueue>(std::move(*database)));
}

Result<std::vector<JobId>> KeptInSqliteQueue(const std::string& path, std::string_view org, std::span<const JobId> ids) {
  std::vector<JobId> found;
  if (std::error_code ignored; !std::filesystem::exists(path, ignored)) return found;
  MILLRACE_TRY_ASSIGN(auto db, sqlite::Database::Open(path, {.access = sqlite::Access::kReadOnly}));
  for (const JobId& id : ids) {
    MILLRACE_TRY_ASSIGN(
        sqlite::Statement lines,
        db.Prepare("select l.name from ready r join line l on l.no = r.line where r.id = ?1 "
                   "union all select line from due where id = ?1 union all select line from kept where id = ?1"));
    lines.BindAll(Blob{id.uuid.AsBytes()});
    for (;;) {
      MILLRACE_TRY_ASSIGN(const bool row, lines.Step());
      if (!row) break;
      if (!IsKeptLine(lines.View(0)) || OrgOfLine(lines.View(0)) != org) continue;
      found.push_back(id);
      break;
    }
  }
  return found;
}

Result<void> LocalInbox::Ring(ShardId shard) {
  {
    const std::scoped_lock lock(mutex_);
    rung_.insert(shard);
  }
  changed_.notify_all();
  return {};
}

Result<std::vector<ShardId>> LocalInbox::Wait(std::span<const ShardId> shards, Millis timeout) {
  std::unique_lock lock(mutex_);
  std::vector<ShardId> rung;
  changed_.wait_for(lock, std::max(timeout, Millis{0}), [&] {
    for (const ShardId shard : shards)
      if (rung_.erase(shard) != 0) rung.push_back(shard);
    return !rung.empty();
  });
  return rung;
}

}  // namespace millrace
