#include "common/ledger/migrations.h"

#include <fmt/format.h>

#include <iterator>
#include <string>

namespace millrace::ledger {
namespace {

constexpr std::string_view kVersion1 = R"sql(
create table ledger_setting (name text primary key, number integer not null) strict;
create table audit_record (
  writer blob not null, seq integer not null, previous blob not null, at integer not null, actor text not null,
  leaves blob not null, root blob not null, hash blob not null, primary key (writer, seq)) strict;

create table shard_owner (shard integer primary key, owner blob, owner_name text not null, epoch integer not null) strict;
create table shard_renewal (shard integer primary key, owner blob not null, epoch integer not null, renewed_at integer not null) strict;
create table leader (id integer primary key check (id = 1), holder blob not null, name text not null, epoch integer not null,
  expires_at integer not null) strict;

create table pipeline_version (
  org integer not null, pipeline text not null, version integer not null, source text not null, definition text not null,
  base_dir text not null, applied_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null,
  primary key (org, pipeline, version)) strict;
create table schedule (
  org integer not null, pipeline text not null, schedule text not null, cron text not null, timezone text not null,
  catchup text not null, overlap text not null, dst text not null, misfire_grace_ms integer not null, version integer not null,
  watermark integer not null, paused integer not null default 0, active integer not null default 1,
  primary key (org, pipeline, schedule)) strict;
create table slot (
  org integer not null, pipeline text not null, schedule text not null, slot integer not null, generation integer not null,
  state text not null, reason text not null, run blob, decided_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null,
  primary key (org, pipeline, schedule, slot, generation)) strict;

create table run (
  run blob primary key, org integer not null, pipeline text not null, version integer not null, schedule text not null,
  slot integer, generation integer not null, overlap text not null, params text not null, created_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null) strict;
create index run_by_org on run (org, pipeline, run);
create table run_outcome (
  run blob primary key, org integer not null, state integer not null, reason text not null, finished_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null) strict;
create table job (
  job blob primary key, org integer not null, run blob, stage text not null, kind text not null, queue text not null,
  priority integer not null, payload blob not null, depends_on blob not null, effect text not null, root text not null,
  max_attempts integer not null, backoff_base_ms integer not null, backoff_cap_ms integer not null, timeout_ms integer not null,
  run_at integer, submitted_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null) strict;
create index job_by_run on job (run) where run is not null;
create table attempt (
  job blob not null, token integer not null, org integer not null, ended integer not null, retryable integer not null,
  error_class text not null, error text not null, result blob not null, exit_code integer not null, signal integer not null,
  log_tail blob not null, worker text not null, started_at integer not null, finished_at integer not null,
  deliveries integer not null, failures integer not null, crashes integer not null, next_run_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null,
  primary key (job, token)) strict;
create table outcome (
  job blob primary key, token integer not null, org integer not null, ended integer not null, retryable integer not null,
  error_class text not null, error text not null, result blob not null, exit_code integer not null, signal integer not null,
  log_tail blob not null, worker text not null, started_at integer not null, finished_at integer not null,
  deliveries integer not null, failures integer not null, crashes integer not null, run blob, state integer not null,
  recorded_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null) strict;

create index pipeline_version_audit on pipeline_version (audit_writer, audit_seq);
create index slot_audit on slot (audit_writer, audit_seq);
create index run_audit on run (audit_writer, audit_seq);
create index run_outcome_audit on run_outcome (audit_writer, audit_seq);
create index job_audit on job (audit_writer, audit_seq);
create index attempt_audit on attempt (audit_writer, audit_seq);
create index outcome_audit on outcome (audit_writer, audit_seq);

create table live_run (run blob primary key, org integer not null, shard integer not null) strict, without rowid;
create index live_run_by_shard on live_run (shard, run);
create table live_job (job blob primary key, org integer not null, shard integer not null) strict, without rowid;
create index live_job_by_shard on live_job (shard, job);
create table outbox (item blob primary key, org integer not null, shard integer not null, is_run integer not null) strict, without rowid;
create index outbox_by_shard on outbox (shard, item);
)sql";

// Options of a job; cancel requests. `options` stands behind the audit columns of older ledgers: columns go by name.
constexpr std::string_view kVersion2 = R"sql(
alter table job add column options text;
create table cancel (
  item blob primary key, is_run integer not null, org integer not null, actor text not null, reason text not null,
  requested_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null) strict;
create index cancel_audit on cancel (audit_writer, audit_seq);
)sql";

// Settings of queues, one row per revision; the newest counts.
constexpr std::string_view kVersion3 = R"sql(
create table queue_setting (
  org integer not null, queue text not null, revision integer not null, shard integer not null, settings text not null,
  actor text not null, at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null,
  primary key (org, queue, revision)) strict;
create index queue_setting_by_shard on queue_setting (shard);
create index queue_setting_audit on queue_setting (audit_writer, audit_seq);
)sql";

// More rules of a schedule, and the revision that tells schedulers which rows changed; backfills.
constexpr std::string_view kVersion4 = R"sql(
alter table schedule add column starts text not null default '';
alter table schedule add column ends text not null default '';
alter table schedule add column jitter_ms integer not null default 0;
alter table schedule add column max_parallel integer not null default 0;
alter table schedule add column revision integer not null default 0;
update schedule set revision = rowid;
create index schedule_by_revision on schedule (revision);
create trigger schedule_inserted after insert on schedule begin
  update schedule set revision = (select max(revision) from schedule) + 1 where rowid = new.rowid;
end;
create trigger schedule_updated after update of watermark, cron, timezone, catchup, overlap, dst, misfire_grace_ms, version, paused, active, starts, ends, jitter_ms, max_parallel on schedule
  when new.watermark < old.watermark or
       (new.cron, new.timezone, new.catchup, new.overlap, new.dst, new.misfire_grace_ms, new.version, new.paused, new.active, new.starts, new.ends, new.jitter_ms, new.max_parallel) is not
       (old.cron, old.timezone, old.catchup, old.overlap, old.dst, old.misfire_grace_ms, old.version, old.paused, old.active, old.starts, old.ends, old.jitter_ms, old.max_parallel)
begin
  update schedule set revision = (select max(revision) from schedule) + 1 where rowid = new.rowid;
end;

create table backfill (
  backfill blob primary key, org integer not null, pipeline text not null, schedule text not null,
  range_from integer not null, range_to integer not null, until integer not null, generation integer not null,
  version integer not null, options text not null, actor text not null, created_at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null) strict;
create index backfill_audit on backfill (audit_writer, audit_seq);
create unique index backfill_generation on backfill (org, pipeline, schedule, generation);
create table backfill_state (
  backfill blob primary key, position integer not null, fed integer not null default 0, ended_at integer) strict;
create index backfill_unended on backfill_state (backfill) where ended_at is null;
create table backfill_live (backfill blob not null, run blob not null, primary key (backfill, run)) strict, without rowid;
)sql";

// What became of dead jobs; live unique keys (until_us: micros since 1970, the last instant of the type when not a window).
constexpr std::string_view kVersion5 = R"sql(
create table dead_action (
  job blob primary key, org integer not null, action integer not null, new_job blob, actor text not null, reason text not null,
  at integer not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null) strict;
create index dead_action_audit on dead_action (audit_writer, audit_seq);
create index outcome_dead on outcome (job) where state = 11;
create table live_unique (
  org integer not null, queue text not null, key text not null, job blob not null, until integer not null, until_us integer not null,
  primary key (org, queue, key)) strict;
create index live_unique_by_job on live_unique (job);
create index live_unique_by_time on live_unique (until_us);
)sql";

// Which brokers live: they share the shards.
constexpr std::string_view kVersion6 = R"sql(
create table broker_presence (owner blob primary key, name text not null, renewed_at integer not null) strict;
)sql";

// Transactional enqueue: what applications insert inside transactions of their own on this file. See ops/docs/enqueue.md. Their
// SQLite may be an old one (no unhex, no unixepoch('subsec')), so the bytes of an id are made one by one: @ is the table of
// all.
constexpr std::string_view kVersion7 = R"sql(
create table enqueue (
  job blob primary key default (cast(
    substr(@, ((cast((julianday('now') - 2440587.5) * 86400000 as integer) >> 40) & 255) + 1, 1) ||
    substr(@, ((cast((julianday('now') - 2440587.5) * 86400000 as integer) >> 32) & 255) + 1, 1) ||
    substr(@, ((cast((julianday('now') - 2440587.5) * 86400000 as integer) >> 24) & 255) + 1, 1) ||
    substr(@, ((cast((julianday('now') - 2440587.5) * 86400000 as integer) >> 16) & 255) + 1, 1) ||
    substr(@, ((cast((julianday('now') - 2440587.5) * 86400000 as integer) >> 8) & 255) + 1, 1) ||
    substr(@, (cast((julianday('now') - 2440587.5) * 86400000 as integer) & 255) + 1, 1) ||
    substr(@, 112 + (random() & 15) + 1, 1) || randomblob(1) || substr(@, 128 + (random() & 63) + 1, 1) || randomblob(7) as blob)),
  org integer not null default 1, queue text not null default 'default', kind text not null, payload blob not null default x'',
  priority integer not null default 2, max_attempts integer not null default 3, backoff_base_ms integer not null default 1000,
  backoff_cap_ms integer not null default 60000, timeout_ms integer not null default 0, run_at integer, options text not null default '{}',
  enqueued_at integer not null default (cast((julianday('now') - 2440587.5) * 86400000000 as integer))) strict;
create index enqueue_by_org on enqueue (org, job);
create table enqueue_refused (
  job blob primary key, org integer not null, queue text not null, kind text not null, payload blob not null,
  priority integer not null, max_attempts integer not null, backoff_base_ms integer not null,
  backoff_cap_ms integer not null, timeout_ms integer not null, run_at integer, options text not null,
  enqueued_at integer not null, reason text not null, refused_at integer not null) strict;
create index enqueue_refused_by_org on enqueue_refused (org, job);
)sql";

// Where a stage was routed by the size of its input; null: its job's own queue.
constexpr std::string_view kVersion8 = R"sql(
alter table attempt add column queue text;
alter table outcome add column queue text;
)sql";

// Retention: what was pruned from the audit chains. `prune_check` holds nothing: a wrong count stops the transaction there.
constexpr std::string_view kVersion9 = R"sql(
create table pruned (
  writer blob not null, number integer not null, through integer not null, through_hash blob not null,
  pruned_rows integer not null, leaves blob not null, before integer not null, at integer not null, actor text not null,
  signature blob not null,
  audit_writer blob not null, audit_seq integer not null, audit_index integer not null, primary key (writer, number)) strict;
create index pruned_audit on pruned (audit_writer, audit_seq);
create table pruned_leaf (writer blob not null, seq integer not null, bits blob not null, primary key (writer, seq)) strict, without rowid;
create table prune_check (as_counted integer not null check (as_counted = 1)) strict;
)sql";

// No chain holds a record with a number below 1 (SQLite adds no check to a table that exists).
constexpr std::string_view kVersion10 = R"sql(
create trigger audit_record_inserted before insert on audit_record when new.seq < 1 begin
  select raise(abort, 'the number of an audit record is below 1');
end;
create trigger audit_record_updated before update on audit_record when new.seq < 1 begin
  select raise(abort, 'the number of an audit record is below 1');
end;
)sql";

// Live jobs and outbox rows are asked for by shard, always: one tree each.
constexpr std::string_view kVersion11 = R"sql(
create table live_job_new (job blob not null, org integer not null, shard integer not null, primary key (shard, job)) strict, without rowid;
insert into live_job_new (job, org, shard) select job, org, shard from live_job;
drop table live_job;
alter table live_job_new rename to live_job;
create table outbox_new (item blob not null, org integer not null, shard integer not null, is_run integer not null, primary key (shard, item)) strict, without rowid;
insert into outbox_new (item, org, shard, is_run) select item, org, shard, is_run from outbox;
drop table outbox;
alter table outbox_new rename to outbox;
)sql";

// The verifier reads all rows in the order of storage: nobody else asked for the rows of a record, and every row paid for it.
constexpr std::string_view kVersion12 = R"sql(
drop index if exists pipeline_version_audit;
drop index if exists slot_audit;
drop index if exists run_audit;
drop index if exists run_outcome_audit;
drop index if exists job_audit;
drop index if exists attempt_audit;
drop index if exists outcome_audit;
drop index if exists cancel_audit;
drop index if exists queue_setting_audit;
drop index if exists backfill_audit;
drop index if exists dead_action_audit;
drop index if exists pruned_audit;
)sql";

// The outbox of a herd of runs: a row for many of them (their ids, 16 bytes each), which its reader takes out as a whole.
constexpr std::string_view kVersion13 = R"sql(
create table outbox_batch (batch blob not null, shard integer not null, runs blob not null, primary key (shard, batch)) strict, without rowid;
)sql";

// Two orgs may each keep a refused row of one id.
constexpr std::string_view kVersion14 = R"sql(
create table enqueue_refused_new (
  job blob not null, org integer not null, queue text not null, kind text not null, payload blob not null,
  priority integer not null, max_attempts integer not null, backoff_base_ms integer not null,
  backoff_cap_ms integer not null, timeout_ms integer not null, run_at integer, options text not null,
  enqueued_at integer not null, reason text not null, refused_at integer not null, primary key (org, job)) strict;
insert into enqueue_refused_new select job, org, queue, kind, payload, priority, max_attempts, backoff_base_ms, backoff_cap_ms,
  timeout_ms, run_at, options, enqueued_at, reason, refused_at from enqueue_refused where job is not null;
drop table enqueue_refused;
alter table enqueue_refused_new rename to enqueue_refused;
)sql";

// What is to be cancelled is found among all that waits in an outbox. An id of another length names no row: nothing could
// take the row, or refuse it; those that are there are refused under ids of their own.
constexpr std::string_view kVersion15 = R"sql(
alter table outbox add column cancel_requested integer not null default 0;
update outbox set cancel_requested = 1 where exists (select 1 from cancel c where c.item = outbox.item);
create index outbox_cancels on outbox (shard, item) where cancel_requested = 1;
insert into enqueue_refused (job, org, queue, kind, payload, priority, max_attempts, backoff_base_ms, backoff_cap_ms, timeout_ms,
    run_at, options, enqueued_at, reason, refused_at)
  select randomblob(16), org, queue, kind, payload, priority, max_attempts, backoff_base_ms, backoff_cap_ms, timeout_ms, run_at,
    options, enqueued_at, printf('job: x''%s'' is no UUIDv7, which has 16 bytes; leave the column out to get one',
    lower(hex(substr(job, 1, 64)))), cast((julianday('now') - 2440587.5) * 86400000000 as integer)
    from enqueue where length(job) <> 16;
delete from enqueue where length(job) <> 16;
create trigger enqueue_job_inserted before insert on enqueue when length(new.job) <> 16 begin
  select raise(abort, 'enqueue.job is no UUIDv7, which has 16 bytes; leave the column out to get one'); end;
create trigger enqueue_job_updated before update of job on enqueue when length(new.job) <> 16 begin
  select raise(abort, 'enqueue.job is no UUIDv7, which has 16 bytes; leave the column out to get one'); end;
)sql";

// Where clients reach a broker.
constexpr std::string_view kVersion16 = R"sql(
alter table broker_presence add column clients text not null default '';
)sql";

// No command speaks for an org below 1. Rows that are there are refused when they are taken.
constexpr std::string_view kVersion17 = R"sql(
create trigger enqueue_org_inserted before insert on enqueue when new.org < 1 begin
  select raise(abort, 'enqueue.org is no org; give an integer of 1 or more'); end;
create trigger enqueue_org_updated before update of org on enqueue when new.org < 1 begin
  select raise(abort, 'enqueue.org is no org; give an integer of 1 or more'); end;
)sql";

// `template_sql` with a blob literal of all 256 bytes for each @.
std::string WithAllBytes(std::string_view template_sql) {
  std::string all = "x'";
  for (int byte = 0; byte < 256; ++byte) fmt::format_to(std::back_inserter(all), "{:02x}", byte);
  all += "'";
  std::string sql;
  for (const char c : template_sql) c == '@' ? sql += all : sql += c;
  return sql;
}

}  // namespace

std::span<const std::string_view> SqliteMigrations() {
  static const std::string version7 = WithAllBytes(kVersion7);
  static const std::string_view all[] = {kVersion1,  kVersion2,  kVersion3,  kVersion4,  kVersion5,  kVersion6,
                                         version7,   kVersion8,  kVersion9,  kVersion10, kVersion11, kVersion12,
                                         kVersion13, kVersion14, kVersion15, kVersion16, kVersion17};
  return all;
}

}  // namespace millrace::ledger
