#include "common/ledger/migrations.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace millrace::ledger {
namespace {

constexpr std::string_view kVersion1 = R"sql(
create table ledger_setting (name text primary key, number bigint not null);
create table ledger_writer (writer uuid primary key, session bigint not null);
create table audit_record (
  writer uuid not null, seq bigint not null, previous bytea not null, at timestamptz not null, actor text not null,
  leaves bytea not null, root bytea not null, hash bytea not null, primary key (writer, seq));

create table shard_owner (shard smallint primary key, owner uuid, owner_name text not null, epoch bigint not null);
create table shard_renewal (shard smallint primary key, owner uuid not null, epoch bigint not null, renewed_at timestamptz not null);
create table leader (id smallint primary key check (id = 1), holder uuid not null, name text not null, epoch bigint not null,
  expires_at timestamptz not null);

create table pipeline_version (
  org bigint not null, pipeline text not null, version bigint not null, source text not null, definition text not null,
  base_dir text not null, applied_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null,
  primary key (org, pipeline, version));
create table schedule (
  org bigint not null, pipeline text not null, schedule text not null, cron text not null, timezone text not null,
  catchup text not null, overlap text not null, dst text not null, misfire_grace_ms bigint not null, version bigint not null,
  watermark timestamptz not null, paused smallint not null default 0, active smallint not null default 1,
  primary key (org, pipeline, schedule));
create table slot (
  org bigint not null, pipeline text not null, schedule text not null, slot timestamptz not null, generation bigint not null,
  state text not null, reason text not null, run uuid, decided_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null,
  primary key (org, pipeline, schedule, slot, generation));

create table run (
  run uuid primary key, org bigint not null, pipeline text not null, version bigint not null, schedule text not null,
  slot timestamptz, generation bigint not null, overlap text not null, params text not null, created_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null);
create index run_by_org on run (org, pipeline, run);
create table run_outcome (
  run uuid primary key, org bigint not null, state smallint not null, reason text not null, finished_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null);
create table job (
  job uuid primary key, org bigint not null, run uuid, stage text not null, kind text not null, queue text not null,
  priority smallint not null, payload bytea not null, depends_on uuid[] not null, effect text not null, root text not null,
  max_attempts integer not null, backoff_base_ms bigint not null, backoff_cap_ms bigint not null, timeout_ms bigint not null,
  run_at timestamptz, submitted_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null) partition by range (job);
create table job_default partition of job default;
create index job_by_run on job (run) where run is not null;
create table attempt (
  job uuid not null, token bigint not null, org bigint not null, ended smallint not null, retryable boolean not null,
  error_class text not null, error text not null, result bytea not null, exit_code integer not null, signal integer not null,
  log_tail bytea not null, worker text not null, started_at timestamptz not null, finished_at timestamptz not null,
  deliveries bigint not null, failures bigint not null, crashes bigint not null, next_run_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null,
  primary key (job, token));
create table outcome (
  job uuid primary key, token bigint not null, org bigint not null, ended smallint not null, retryable boolean not null,
  error_class text not null, error text not null, result bytea not null, exit_code integer not null, signal integer not null,
  log_tail bytea not null, worker text not null, started_at timestamptz not null, finished_at timestamptz not null,
  deliveries bigint not null, failures bigint not null, crashes bigint not null, run uuid, state smallint not null,
  recorded_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null) partition by range (job);
create table outcome_default partition of outcome default;

create index pipeline_version_audit on pipeline_version (audit_writer, audit_seq);
create index slot_audit on slot (audit_writer, audit_seq);
create index run_audit on run (audit_writer, audit_seq);
create index run_outcome_audit on run_outcome (audit_writer, audit_seq);
create index job_audit on job (audit_writer, audit_seq);
create index attempt_audit on attempt (audit_writer, audit_seq);
create index outcome_audit on outcome (audit_writer, audit_seq);

create table live_run (run uuid primary key, org bigint not null, shard smallint not null);
create index live_run_by_shard on live_run (shard, run);
create table live_job (job uuid primary key, org bigint not null, shard smallint not null);
create index live_job_by_shard on live_job (shard, job);
create table outbox (item uuid primary key, org bigint not null, shard smallint not null, is_run smallint not null);
create index outbox_by_shard on outbox (shard, item);

-- One commit of a writer at a time, and none by a connection that the writer has given up: whoever registers anew waits for
-- the transaction under way, and from then on the old connection commits nothing.
create function writer_lock(w uuid) returns bigint language sql immutable as
  $$ select hashtextextended(w::text, 7318349394477056) $$;
create function register_writer(w uuid) returns bigint language plpgsql as $$
declare s bigint;
begin
  perform pg_advisory_xact_lock(millrace.writer_lock(w));
  insert into millrace.ledger_writer as l (writer, session) values (w, 1)
    on conflict (writer) do update set session = l.session + 1 returning session into s;
  return s;
end $$;
create function begin_write(w uuid, s bigint) returns void language plpgsql as $$
begin
  perform pg_advisory_xact_lock(millrace.writer_lock(w));
  perform 1 from millrace.ledger_writer l where l.writer = w and l.session = s;
  if not found then
    raise exception 'another connection has taken over the audit writer %', w using errcode = 'MR002';
  end if;
end $$;

-- The fence of an owner's transaction: locks the ownership rows and compares owner and epoch.
create function assert_holds(shards bigint[], epochs bigint[], who uuid) returns void language plpgsql as $$
declare r record;
begin
  for r in select h.shard, h.epoch as held, o.epoch, o.owner, o.owner_name
             from unnest(shards, epochs) as h(shard, epoch) left join lateral
                  (select * from millrace.shard_owner s where s.shard = h.shard for share) o on true order by h.shard loop
    if r.owner is distinct from who or r.epoch is distinct from r.held then
      raise exception 'shard %: epoch % of this owner is stale, the ledger has epoch % (owner %)',
        r.shard, r.held, coalesce(r.epoch, 0), case when r.owner is null then 'none' else r.owner_name end using errcode = 'MR001';
    end if;
  end loop;
end $$;

-- Weekly partitions of job and outcome by the time inside a UUIDv7, from one week before `since` on. A week whose rows are
-- in the default partition already stays there.
create function uuid_at(t timestamptz) returns uuid language sql immutable as $$
  select (substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-0000-0000-000000000000')::uuid
    from (select lpad(to_hex((extract(epoch from t) * 1000)::bigint), 12, '0') as h) x $$;
create function ensure_partitions(since timestamptz, weeks integer) returns integer language plpgsql as $$
declare
  monday timestamptz := date_trunc('week', since at time zone 'UTC') at time zone 'UTC';
  lower_t timestamptz; upper_t timestamptz; t text; part text; made integer := 0;
begin
  for i in -1 .. weeks loop
    lower_t := monday + i * interval '7 days';
    upper_t := lower_t + interval '7 days';
    foreach t in array array['job', 'outcome'] loop
      part := t || '_' || to_char(lower_t at time zone 'UTC', 'YYYYMMDD');
      if to_regclass('millrace.' || part) is null then
        begin
          execute format('create table millrace.%I partition of millrace.%I for values from (%L) to (%L)', part, t,
                         millrace.uuid_at(lower_t), millrace.uuid_at(upper_t));
          made := made + 1;
        exception when check_violation then null;
        end;
      end if;
    end loop;
  end loop;
  return made;
end $$;

create view run_status as
  select r.run, r.org, r.pipeline, r.version, r.schedule, r.slot, r.generation, r.created_at, o.finished_at,
         case o.state when 10 then 'succeeded' when 11 then 'failed' when 12 then 'cancelled' when 13 then 'skipped'
           else 'running' end as state, coalesce(o.reason, '') as reason
    from run r left join run_outcome o on o.run = r.run;
create view job_status as
  select j.job, j.org, j.run, j.stage, j.kind, j.queue, j.priority, j.submitted_at, o.finished_at,
         case o.state when 10 then 'succeeded' when 11 then 'dead' when 12 then 'cancelled' when 13 then 'expired'
           when 14 then 'skipped' else 'live' end as state,
         coalesce(o.error_class, '') as error_class, coalesce(o.error, '') as error, coalesce(o.worker, '') as worker,
         coalesce(o.deliveries, a.deliveries, 0) as deliveries, coalesce(o.failures, a.failures, 0) as failures
    from job j left join outcome o on o.job = j.job
         left join lateral (select x.deliveries, x.failures from attempt x where x.job = j.job order by x.token desc limit 1) a on true;
)sql";

// Options of a job; cancel requests.
constexpr std::string_view kVersion2 = R"sql(
alter table job add column options text;
create table cancel (
  item uuid primary key, is_run boolean not null, org bigint not null, actor text not null, reason text not null,
  requested_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null);
create index cancel_audit on cancel (audit_writer, audit_seq);
)sql";

// Settings of queues, one row per revision; the newest counts.
constexpr std::string_view kVersion3 = R"sql(
create table queue_setting (
  org bigint not null, queue text not null, revision bigint not null, shard integer not null, settings text not null,
  actor text not null, at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null,
  primary key (org, queue, revision));
create index queue_setting_by_shard on queue_setting (shard);
create index queue_setting_audit on queue_setting (audit_writer, audit_seq);
)sql";

// More rules of a schedule, and the revision that tells schedulers which rows changed; backfills. A revision is taken under a
// lock that is held to the end of the transaction, so that revisions become visible in their order.
constexpr std::string_view kVersion4 = R"sql(
create sequence schedule_revision;
alter table schedule add column starts text not null default '', add column ends text not null default '',
  add column jitter_ms bigint not null default 0, add column max_parallel bigint not null default 0,
  add column revision bigint not null default nextval('millrace.schedule_revision');
create index schedule_by_revision on schedule (revision);
create function schedule_changed() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(7318349394477058);
  new.revision := nextval('millrace.schedule_revision');
  return new;
end $$;
create trigger schedule_inserted before insert on schedule for each row execute function schedule_changed();
create trigger schedule_updated before update on schedule for each row
  when (new.watermark < old.watermark or
        (new.cron, new.timezone, new.catchup, new.overlap, new.dst, new.misfire_grace_ms, new.version, new.paused, new.active,
         new.starts, new.ends, new.jitter_ms, new.max_parallel) is distinct from
        (old.cron, old.timezone, old.catchup, old.overlap, old.dst, old.misfire_grace_ms, old.version, old.paused, old.active,
         old.starts, old.ends, old.jitter_ms, old.max_parallel))
  execute function schedule_changed();

create table backfill (
  backfill uuid primary key, org bigint not null, pipeline text not null, schedule text not null,
  range_from timestamptz not null, range_to timestamptz not null, until timestamptz not null, generation bigint not null,
  version bigint not null, options text not null, actor text not null, created_at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null);
create index backfill_audit on backfill (audit_writer, audit_seq);
create unique index backfill_generation on backfill (org, pipeline, schedule, generation);
create table backfill_state (
  backfill uuid primary key, position timestamptz not null, fed smallint not null default 0, ended_at timestamptz);
create index backfill_unended on backfill_state (backfill) where ended_at is null;
create table backfill_live (backfill uuid not null, run uuid not null, primary key (backfill, run));
)sql";

// What became of dead jobs; live unique keys (until_us: micros since 1970, the last instant of the type when not a window).
constexpr std::string_view kVersion5 = R"sql(
create table dead_action (
  job uuid primary key, org bigint not null, action smallint not null, new_job uuid, actor text not null, reason text not null,
  at timestamptz not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null);
create index dead_action_audit on dead_action (audit_writer, audit_seq);
create index outcome_dead on outcome (job) where state = 11;
create table live_unique (
  org bigint not null, queue text not null, key text not null, job uuid not null, until smallint not null, until_us bigint not null,
  primary key (org, queue, key));
create index live_unique_by_job on live_unique (job);
create index live_unique_by_time on live_unique (until_us);
)sql";

// Which brokers live: they share the shards.
constexpr std::string_view kVersion6 = R"sql(
create table broker_presence (owner uuid primary key, name text not null, renewed_at timestamptz not null);
)sql";

// Transactional enqueue: what applications insert inside their own transactions. See ops/docs/enqueue.md. Row-level security
// lets nobody but the owner of the table insert or see a row, except as allow_enqueue says.
constexpr std::string_view kVersion7 = R"sql(
create function uuid7() returns uuid language sql volatile as
  $$ select encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing
       substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6), 52, 1), 53, 1),
       'hex')::uuid $$;
create table enqueue (
  job uuid primary key default millrace.uuid7(), org bigint not null default 1, queue text not null default 'default',
  kind text not null, payload bytea not null default '', priority integer not null default 2,
  max_attempts integer not null default 3, backoff_base_ms bigint not null default 1000,
  backoff_cap_ms bigint not null default 60000, timeout_ms bigint not null default 0, run_at timestamptz,
  options jsonb not null default '{}', enqueued_at timestamptz not null default clock_timestamp());
create index enqueue_by_org on enqueue (org, job);
create table enqueue_refused (like enqueue, reason text not null, refused_at timestamptz not null, primary key (job));
create index enqueue_refused_by_org on enqueue_refused (org, job);
create function enqueue_inserted() returns trigger language plpgsql as $$
begin
  perform pg_catalog.pg_notify('millrace_enqueue', '');
  return null;
end $$;
create trigger enqueue_inserted after insert on enqueue for each statement execute function enqueue_inserted();
create function enqueue_job(kind text, payload text default '', queue text default 'default', run_at timestamptz default null,
                            priority integer default 2, max_attempts integer default 3, options jsonb default '{}',
                            org bigint default 1) returns uuid language plpgsql as $$
declare id uuid := millrace.uuid7();
begin
  insert into millrace.enqueue (job, org, queue, kind, payload, priority, max_attempts, run_at, options)
    values (id, $8, $3, $1, convert_to($2, 'UTF8'), $5, $6, $4, $7);
  return id;
end $$;
alter table enqueue enable row level security;
alter table enqueue_refused enable row level security;
create function allow_enqueue(role_name name, for_org bigint, kinds text[]) returns void language plpgsql as $$
begin
  execute format('grant usage on schema millrace to %I', role_name);
  execute format('grant insert on millrace.enqueue to %I', role_name);
  execute format('drop policy if exists %I on millrace.enqueue', 'enqueue_' || role_name);
  execute format('create policy %I on millrace.enqueue for insert to %I with check (org = %L and kind = any (%L::text[]))',
                 'enqueue_' || role_name, role_name, for_org, kinds);
end $$;
revoke execute on function allow_enqueue(name, bigint, text[]) from public;
)sql";

// Where a stage was routed by the size of its input; null: its job's own queue.
constexpr std::string_view kVersion8 = R"sql(
alter table attempt add column queue text;
alter table outcome add column queue text;
)sql";

// Retention: attempts, runs and their outcomes in weekly partitions too (what is there stays in the default ones); what was
// pruned from the audit chains; and how a week goes. An insert behind the back of who counts what goes is a conflict.
constexpr std::string_view kVersion9 = R"sql(
drop view run_status;
drop view job_status;
do $$
declare t text; k text; p text;
begin
  foreach t in array array['attempt', 'run', 'run_outcome'] loop
    k := case t when 'attempt' then 'job' else 'run' end;
    p := case t when 'attempt' then 'job, token' else 'run' end;
    execute format('alter table %I rename to %I', t, t || '_default');
    execute format('alter index %I rename to %I', t || '_pkey', t || '_default_pkey');
    execute format('alter index %I rename to %I', t || '_audit', t || '_default_audit');
    execute format('create table %I (like %I including defaults) partition by range (%I)', t, t || '_default', k);
    execute format('alter table %I attach partition %I default', t, t || '_default');
    execute format('alter table %I add primary key (%s)', t, p);
    execute format('create index %I on %I (audit_writer, audit_seq)', t || '_audit', t);
  end loop;
end $$;
alter index run_by_org rename to run_default_by_org;
create index run_by_org on run (org, pipeline, run);
create view run_status as
  select r.run, r.org, r.pipeline, r.version, r.schedule, r.slot, r.generation, r.created_at, o.finished_at,
         case o.state when 10 then 'succeeded' when 11 then 'failed' when 12 then 'cancelled' when 13 then 'skipped'
           else 'running' end as state, coalesce(o.reason, '') as reason
    from run r left join run_outcome o on o.run = r.run;
create view job_status as
  select j.job, j.org, j.run, j.stage, j.kind, coalesce(o.queue, a.queue, j.queue) as queue, j.priority, j.submitted_at,
         o.finished_at,
         case o.state when 10 then 'succeeded' when 11 then 'dead' when 12 then 'cancelled' when 13 then 'expired'
           when 14 then 'skipped' else 'live' end as state,
         coalesce(o.error_class, '') as error_class, coalesce(o.error, '') as error, coalesce(o.worker, '') as worker,
         coalesce(o.deliveries, a.deliveries, 0) as deliveries, coalesce(o.failures, a.failures, 0) as failures
    from job j left join outcome o on o.job = j.job
         left join lateral (select x.deliveries, x.failures, x.queue from attempt x where x.job = j.job
                             order by x.token desc limit 1) a on true;

create or replace function ensure_partitions(since timestamptz, weeks integer) returns integer language plpgsql as $$
declare
  monday timestamptz := date_trunc('week', since at time zone 'UTC') at time zone 'UTC';
  lower_t timestamptz; upper_t timestamptz; t text; part text; made integer := 0; taken boolean;
begin
  for i in -1 .. weeks loop
    lower_t := monday + i * interval '7 days';
    upper_t := lower_t + interval '7 days';
    foreach t in array array['job', 'attempt', 'outcome', 'run', 'run_outcome'] loop
      part := t || '_' || to_char(lower_t at time zone 'UTC', 'YYYYMMDD');
      -- a week with rows in the default partition stays there; the index says so, before the whole of it is read
      execute format('select exists (select 1 from millrace.%I where %I >= %L and %I < %L)', t || '_default',
                     case when t in ('run', 'run_outcome') then 'run' else 'job' end, millrace.uuid_at(lower_t),
                     case when t in ('run', 'run_outcome') then 'run' else 'job' end, millrace.uuid_at(upper_t)) into taken;
      if not taken and to_regclass('millrace.' || part) is null then
        begin
          execute format('create table millrace.%I partition of millrace.%I for values from (%L) to (%L)', part, t,
                         millrace.uuid_at(lower_t), millrace.uuid_at(upper_t));
          made := made + 1;
        exception when check_violation then null;
        end;
      end if;
    end loop;
  end loop;
  return made;
end $$;

create table pruned (
  writer uuid not null, number bigint not null, through bigint not null, through_hash bytea not null, pruned_rows bigint not null,
  leaves bytea not null, before timestamptz not null, at timestamptz not null, actor text not null, signature bytea not null,
  audit_writer uuid not null, audit_seq bigint not null, audit_index integer not null, primary key (writer, number));
create index pruned_audit on pruned (audit_writer, audit_seq);
create table pruned_leaf (writer uuid not null, seq bigint not null, bits bytea not null, primary key (writer, seq));

-- Weeks that are over by `upto` (a Monday, UTC) go as partitions; what older rows there are elsewhere is deleted.
create function prune_before(upto timestamptz, expected bigint[]) returns bigint language plpgsql as $$
declare
  names text[] := array['run', 'job', 'attempt', 'outcome', 'run_outcome', 'cancel', 'dead_action'];
  keys text[] := array['run', 'job', 'job', 'job', 'run', 'item', 'job'];
  part regclass; n bigint; totals bigint[] := array[]::bigint[]; gone bigint := 0;
begin
  -- row by row first: dropping a partition locks its parent until the end
  for i in 1 .. array_length(names, 1) loop
    -- the request to stop a backfill stays, or the backfill would go on
    execute format('delete from millrace.%I where %I < $1', names[i] ||
                     case when i <= 5 then '_default' else '' end, keys[i]) ||
      case names[i] when 'cancel' then ' and not exists (select 1 from millrace.backfill b where b.backfill = item)' else '' end
      using millrace.uuid_at(upto);
    get diagnostics n = row_count;
    totals := totals || n;
  end loop;
  for i in 1 .. 5 loop
    for part in select c.oid::regclass from pg_catalog.pg_inherits h join pg_catalog.pg_class c on c.oid = h.inhrelid
                 where h.inhparent = ('millrace.' || names[i])::regclass and c.relname ~ ('^' || names[i] || '_[0-9]{8}$')
                   and to_date(right(c.relname, 8), 'YYYYMMDD') + 7 <= (upto at time zone 'UTC')::date loop
      execute format('lock table %s in access exclusive mode', part);
      execute format('select count(*) from %s', part) into n;
      execute format('drop table %s', part);
      totals[i] := totals[i] + n;
    end loop;
  end loop;
  for i in 1 .. array_length(names, 1) loop
    if totals[i] <> expected[i] then
      raise exception 'table %: % rows would go, % were looked at', names[i], totals[i], expected[i] using errcode = '40001';
    end if;
    gone := gone + totals[i];
  end loop;
  return gone;
end $$;
)sql";

// No chain holds a record with a number below 1. Not validated: a ledger that has one must open, so that the verifier names it.
constexpr std::string_view kVersion10 = R"sql(
alter table audit_record add constraint audit_record_seq check (seq > 0) not valid;
)sql";

// Live jobs and outbox rows are asked for by shard, always: one index each, which an accepted job fills and an ended one
// empties.
constexpr std::string_view kVersion11 = R"sql(
drop index live_job_by_shard;
alter table live_job drop constraint live_job_pkey;
alter table live_job add primary key (shard, job);
drop index outbox_by_shard;
alter table outbox drop constraint outbox_pkey;
alter table outbox add primary key (shard, item);
alter table schedule set (fillfactor = 50);  -- watermarks of a herd move at once, within their pages
alter table audit_record alter column leaves set storage external;  -- hashes: trying to compress them is in vain

-- What a writer's transactions do is planned once per connection, perhaps while tables are empty: the plans are those for full
-- ones.
create or replace function begin_write(w uuid, s bigint) returns void language plpgsql as $$
begin
  perform pg_advisory_xact_lock(millrace.writer_lock(w));
  perform 1 from millrace.ledger_writer l where l.writer = w and l.session = s;
  if not found then
    raise exception 'another connection has taken over the audit writer %', w using errcode = 'MR002';
  end if;
  perform set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true);
end $$;
)sql";

// Ownership in one statement each: a ledger may be 200 ms away, and no lock is held while an answer travels. An owner's renewal
// says which session is his. When he is overdue, that session may hold the shard's row in a transaction that will never end (a
// process that was stopped while it sent one): whoever takes the shard ends the session first.
constexpr std::string_view kVersion12 = R"sql(
alter table shard_renewal add column pid integer, add column session_start timestamptz;

create function session_start() returns timestamptz language sql as
  $$ select a.backend_start from pg_catalog.pg_stat_get_activity(pg_backend_pid()) a $$;
-- Empty: there is no such session any more, or it was told to end.
create function end_session(of_pid integer, started timestamptz) returns text language plpgsql as $$
declare seen timestamptz;
begin
  select a.backend_start into seen from pg_catalog.pg_stat_get_activity(of_pid) a;
  if not found or seen <> started then return ''; end if;
  if seen is null then  -- of a role that this one sees nothing of: it may be anybody's
    return format('its session, pid %s, is of a role of which %s sees nothing (pg_read_all_stats)', of_pid, current_user);
  end if;
  begin
    perform pg_terminate_backend(of_pid);
    return '';
  exception when insufficient_privilege then
    return format('its session, pid %s, cannot be ended by %s: %s', of_pid, current_user, sqlerrm);
  end;
end $$;

-- One row. taken: the new epoch; else the present owner and, when he is overdue, what keeps his shard. age_ms: of his renewal.
create function take_shard(which bigint, who uuid, who_name text, ttl_ms bigint)
  returns table (taken bigint, owner uuid, owner_name text, age_ms bigint, kept_by text) language plpgsql as $$
#variable_conflict use_column
declare o record; r record; ttl interval := ttl_ms * interval '1 millisecond'; note text := '';
begin
  insert into millrace.shard_owner (shard, owner, owner_name, epoch) values (which, null, '', 0) on conflict (shard) do nothing;
  for step in 1 .. 2 loop
    -- First without a lock: nobody waits for the transactions of an owner who renews in time.
    if step = 2 then
      begin
        perform set_config('lock_timeout', '500ms', true);
        perform 1 from millrace.shard_owner s where s.shard = which for update;
        perform 1 from millrace.shard_renewal s where s.shard = which for update;
      exception when lock_not_available then
        return query select null::bigint, o.owner, o.owner_name, floor(extract(epoch from clock_timestamp() - r.renewed_at) * 1000)::bigint,
          case when note = '' then 'a transaction that is under way holds its row' else note end;
        return;
      end;
    end if;
    select * into o from millrace.shard_owner s where s.shard = which;
    select * into r from millrace.shard_renewal s where s.shard = which;
    if o.owner <> who and r.renewed_at is not null then
      -- A renewal that lies far ahead was made before the ledger's clock was set back: it says nothing about now.
      if clock_timestamp() - r.renewed_at < ttl and clock_timestamp() - r.renewed_at > -ttl then
        return query select null::bigint, o.owner, o.owner_name,
          floor(extract(epoch from clock_timestamp() - r.renewed_at) * 1000)::bigint, '';
        return;
      end if;
    end if;
    if step = 1 and o.owner is not null and r.pid <> pg_backend_pid() then
      note := millrace.end_session(r.pid, r.session_start);
    end if;
  end loop;
  update millrace.shard_owner s set owner = who, owner_name = who_name, epoch = s.epoch + 1 where s.shard = which
    returning s.epoch into o.epoch;
  insert into millrace.shard_renewal as s (shard, owner, epoch, renewed_at, pid, session_start)
    values (which, who, o.epoch, clock_timestamp(), pg_backend_pid(), millrace.session_start())
    on conflict (shard) do update set owner = excluded.owner, epoch = excluded.epoch, renewed_at = excluded.renewed_at,
      pid = excluded.pid, session_start = excluded.session_start;
  return query select o.epoch, who, who_name, 0::bigint, '';
end $$;

create function renew_shards(shards bigint[], epochs bigint[], who uuid) returns void language plpgsql as $$
declare stale record; started timestamptz := millrace.session_start();
begin
  with done as (
    update millrace.shard_renewal r set renewed_at = clock_timestamp(), pid = pg_backend_pid(), session_start = started
      from unnest(shards, epochs) as h(shard, epoch)
      join millrace.shard_owner o on o.shard = h.shard and o.owner = who and o.epoch = h.epoch
      where r.shard = h.shard and r.owner = who and r.epoch = h.epoch returning r.shard)
  select h.shard, h.epoch into stale from unnest(shards, epochs) as h(shard, epoch)
    where h.shard not in (select d.shard from done d) order by h.shard limit 1;
  if found then
    raise exception 'shard %: epoch % of this owner is stale, somebody took the shard', stale.shard, stale.epoch
      using errcode = 'MR001';
  end if;
end $$;

create function announce_broker(who uuid, who_name text, leaving boolean, ttl_ms bigint, kept_ms bigint)
  returns setof uuid language plpgsql as $$
declare now_t timestamptz := clock_timestamp(); ttl interval := ttl_ms * interval '1 millisecond';
begin
  if leaving then
    delete from millrace.broker_presence b where b.owner = who;
  else
    insert into millrace.broker_presence (owner, name, renewed_at) values (who, who_name, now_t)
      on conflict (owner) do update set renewed_at = excluded.renewed_at;
  end if;
  delete from millrace.broker_presence b where b.renewed_at < now_t - kept_ms * interval '1 millisecond';
  -- Who lies far ahead said so before the ledger's clock was set back: he says it again in a second, if he lives.
  return query select b.owner from millrace.broker_presence b
    where b.renewed_at > now_t - ttl and b.renewed_at < now_t + ttl order by b.owner;
end $$;

create function try_lead(who uuid, who_name text, ttl_ms bigint) returns table (leads boolean, term bigint, holder_name text)
  language plpgsql as $$
declare l record; ttl interval := ttl_ms * interval '1 millisecond';
begin
  insert into millrace.leader (id, holder, name, epoch, expires_at) values (1, who, who_name, 1, clock_timestamp() + ttl)
    on conflict (id) do nothing;
  if found then return query select true, 1::bigint, who_name; return; end if;
  select * into strict l from millrace.leader x where x.id = 1 for update;
  -- One that ends far ahead was written before the ledger's clock was set back.
  if l.holder <> who and l.expires_at > clock_timestamp() and l.expires_at <= clock_timestamp() + 2 * ttl then
    return query select false, l.epoch, l.name;
    return;
  end if;
  return query update millrace.leader x set holder = who, name = who_name, expires_at = clock_timestamp() + ttl,
      epoch = x.epoch + case when x.holder = who then 0 else 1 end
    where x.id = 1 returning true, x.epoch, x.name;
end $$;
)sql";

// The verifier reads all rows in the order of storage: nobody else asked for the rows of a record, and every row paid for it.
constexpr std::string_view kVersion13 = R"sql(
drop index if exists pipeline_version_audit, slot_audit, run_audit, run_outcome_audit, job_audit, attempt_audit,
  outcome_audit, cancel_audit, queue_setting_audit, backfill_audit, dead_action_audit, pruned_audit;
)sql";

// The outbox of a herd of runs: a row for many of them (their ids, 16 bytes each), which its reader takes out as a whole.
constexpr std::string_view kVersion14 = R"sql(
create table outbox_batch (batch uuid not null, shard smallint not null, runs bytea not null, primary key (shard, batch));
alter table outbox_batch alter column runs set storage external;
)sql";

// Live runs are asked for by shard too, as live jobs are. What a shard has is asked again and again, by plans that were made
// while the tables were empty: never by reading one of them whole.
constexpr std::string_view kVersion15 = R"sql(
drop index live_run_by_shard;
alter table live_run drop constraint live_run_pkey;
alter table live_run add primary key (shard, run);
create function shard_contents() returns table (shard smallint, live_runs integer, live_jobs integer, outbox integer,
                                                queue_settings integer) language sql stable set enable_seqscan = off as $$
  select s.shard, coalesce((select 1 from millrace.live_run x where x.shard = s.shard limit 1), 0),
         coalesce((select 1 from millrace.live_job x where x.shard = s.shard limit 1), 0),
         coalesce((select 1 from millrace.outbox x where x.shard = s.shard limit 1), 0) +
           coalesce((select 1 from millrace.outbox_batch x where x.shard = s.shard limit 1), 0),
         coalesce((select 1 from millrace.queue_setting x where x.shard = s.shard limit 1), 0)
    from millrace.shard_owner s $$;
)sql";

constexpr std::string_view kFirst[] = {kVersion1,  kVersion2,  kVersion3,  kVersion4,  kVersion5,
                                       kVersion6,  kVersion7,  kVersion8,  kVersion9,  kVersion10,
                                       kVersion11, kVersion12, kVersion13, kVersion14, kVersion15};

}  // namespace

std::span<const std::string_view> PostgresMigrations() {
  static const std::vector<std::string_view> all = [] {
    std::vector<std::string_view> versions(std::begin(kFirst), std::end(kFirst));
    std::ranges::copy(PostgresWeekMigrations(), std::back_inserter(versions));
    return versions;
  }();
  return all;
}

}  // namespace millrace::ledger
