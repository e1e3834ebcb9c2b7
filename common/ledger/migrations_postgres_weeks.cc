#include "common/ledger/migrations.h"

// Weekly partitions of everything that retention takes. Whoever commits holds a shard, and loses it when he waits for seconds:
// what has to read a table and what locks one are in versions, and so in transactions, of their own.

namespace millrace::ledger {
namespace {

// Cancel requests and dead-job actions by the week of their run or job; what is there stays in the default partitions.
constexpr std::string_view kVersion16 = R"sql(
do $$
declare t text;
begin
  foreach t in array array['cancel', 'dead_action'] loop
    execute format('alter table %I rename to %I', t, t || '_default');
    execute format('alter index %I rename to %I', t || '_pkey', t || '_default_pkey');
    execute format('create table %I (like %I including defaults) partition by range (%I)', t, t || '_default',
                   case t when 'cancel' then 'item' else 'job' end);
    execute format('alter table %I attach partition %I default', t, t || '_default');
    execute format('alter table %I add primary key (%I)', t, case t when 'cancel' then 'item' else 'job' end);
  end loop;
end $$;
)sql";

// Who may read and write the two. Refused rows are to become a partition, of all that is earlier than a Monday: that none is
// later is promised here and looked up in the next version, which keeps nobody waiting. Rows that are in weekly partitions
// already (an unreleased version 16 made some) become one table again. Two orgs may each keep a row of one id.
constexpr std::string_view kVersion17 = R"sql(
-- Row-level security, policies and grants of a table for another one.
create function copy_access(of_table text, to_table text) returns void language plpgsql as $$
declare c record; p record; g record;
begin
  select r.oid, r.relowner, r.relacl, r.relrowsecurity, r.relforcerowsecurity into strict c
    from pg_catalog.pg_class r where r.oid = ('millrace.' || of_table)::regclass;
  if c.relrowsecurity then execute format('alter table millrace.%I enable row level security', to_table); end if;
  if c.relforcerowsecurity then execute format('alter table millrace.%I force row level security', to_table); end if;
  for p in select x.policyname, x.permissive, x.cmd, x.qual, x.with_check,
                  (select string_agg(case r when 'public' then r::text else quote_ident(r) end, ', ') from unnest(x.roles) r) as roles
             from pg_catalog.pg_policies x where x.schemaname = 'millrace' and x.tablename = of_table
              and not exists (select 1 from pg_catalog.pg_policies y where y.schemaname = 'millrace'
                                 and y.tablename = to_table and y.policyname = x.policyname) loop
    execute format('create policy %I on millrace.%I as %s for %s to %s', p.policyname, to_table, p.permissive, p.cmd, p.roles) ||
      coalesce(' using (' || p.qual || ')', '') || coalesce(' with check (' || p.with_check || ')', '');
  end loop;
  for g in select a.privilege_type, a.grantee, a.is_grantable from pg_catalog.aclexplode(c.relacl) a
            where a.grantee <> c.relowner loop
    execute format('grant %s on millrace.%I to %s', g.privilege_type, to_table,
                   case g.grantee when 0 then 'public' else quote_ident(pg_catalog.pg_get_userbyid(g.grantee)) end) ||
      case when g.is_grantable then ' with grant option' else '' end;
  end loop;
end $$;
select copy_access('cancel_default', 'cancel'), copy_access('dead_action_default', 'dead_action');

do $$
declare
  part text; monday timestamp := date_trunc('week', now() at time zone 'UTC') + interval '14 days';
begin
  if (select c.relkind = 'p' from pg_catalog.pg_class c where c.oid = 'enqueue_refused'::regclass) then
    lock table enqueue_refused in access exclusive mode;
    alter table enqueue_refused detach partition enqueue_refused_default;
    for part in select h.inhrelid::regclass::text from pg_catalog.pg_inherits h where h.inhparent = 'enqueue_refused'::regclass loop
      execute format('insert into enqueue_refused_default select * from %s', part);
    end loop;
    perform copy_access('enqueue_refused', 'enqueue_refused_default');
    drop table enqueue_refused;
    drop index enqueue_refused_default_by_time;
    alter table enqueue_refused_default rename to enqueue_refused;
    alter table enqueue_refused rename constraint enqueue_refused_default_pkey to enqueue_refused_pkey;
    alter index enqueue_refused_default_by_org rename to enqueue_refused_by_org;
  end if;
  alter table enqueue_refused drop constraint enqueue_refused_pkey;
  alter table enqueue_refused replica identity full;  -- somebody may publish it, and then nothing could be updated
  execute format('alter table enqueue_refused add constraint %I check (refused_at < %L) not valid',
                 'before_' || to_char(monday, 'YYYYMMDD'), monday at time zone 'UTC');
end $$;
)sql";

// A refusal that lies weeks ahead was written by a clock that was wrong.
constexpr std::string_view kVersion18 = R"sql(
do $$
declare c text;
begin
  select x.conname into strict c from pg_catalog.pg_constraint x
    where x.conrelid = 'enqueue_refused'::regclass and x.conname ~ '^before_[0-9]{8}$';
  update enqueue_refused set refused_at = now()
    where refused_at >= to_date(right(c, 8), 'YYYYMMDD')::timestamp at time zone 'UTC';
  execute format('alter table enqueue_refused validate constraint %I', c);
end $$;
)sql";

// Refused rows by the week of their refusal: what is there is the partition of its last week, and of all weeks before. How
// partitions are made and dropped.
constexpr std::string_view kVersion19 = R"sql(
do $$
declare c text; part text;
begin
  select x.conname into strict c from pg_catalog.pg_constraint x
    where x.conrelid = 'enqueue_refused'::regclass and x.conname ~ '^before_[0-9]{8}$';
  part := 'enqueue_refused_' || to_char(to_date(right(c, 8), 'YYYYMMDD') - 7, 'YYYYMMDD');
  execute format('alter table enqueue_refused rename to %I', part);
  execute format('alter index enqueue_refused_by_org rename to %I', part || '_by_org');
  execute format('create table enqueue_refused (like %I including defaults) partition by range (refused_at)', part);
  create index enqueue_refused_by_org on enqueue_refused (org, job);
  execute format('alter table enqueue_refused attach partition %I for values from (minvalue) to (%L)', part,
                 to_date(right(c, 8), 'YYYYMMDD')::timestamp at time zone 'UTC');
  execute format('alter table %I drop constraint %I', part, c);
  execute format('alter table %I replica identity full', part);
  create table enqueue_refused_default partition of enqueue_refused default;
  create index enqueue_refused_default_by_time on enqueue_refused_default (refused_at);
  alter table enqueue_refused_default enable row level security, replica identity full;
  perform copy_access(part, 'enqueue_refused');
  if pg_catalog.pg_relation_size(part::regclass) = 0 then  -- a new ledger, or nothing was ever refused
    begin
      execute format('drop table %I', part);
    exception when dependent_objects_still_exist then null;
    end;
  end if;
end $$;
drop function copy_access(text, text);

-- The first partition that is missing, of the weeks from one before `since` to `weeks` after it; null: none is. Attached, not
-- made in its place: that locks the default partition alone, and whoever writes elsewhere goes on.
create function make_partition(since timestamptz, weeks integer) returns text language plpgsql as $$
declare
  names text[] := array['run', 'job', 'attempt', 'outcome', 'run_outcome', 'cancel', 'dead_action', 'enqueue_refused'];
  keys text[] := array['run', 'job', 'job', 'job', 'run', 'item', 'job', 'refused_at'];
  monday timestamptz := date_trunc('week', since at time zone 'UTC') at time zone 'UTC';
  lower_t timestamptz; lower_v text; upper_v text; part text; taken boolean;
  -- what was refused before there were partitions, and all weeks up to its last one
  oldest text := coalesce((select max(c.relname::text) from pg_catalog.pg_inherits h join pg_catalog.pg_class c on c.oid = h.inhrelid
    where h.inhparent = 'millrace.enqueue_refused'::regclass
      and pg_catalog.pg_get_expr(c.relpartbound, c.oid) like 'FOR VALUES FROM (MINVALUE)%'), '');
begin
  for i in -1 .. weeks loop
    lower_t := monday + i * interval '7 days';
    for n in 1 .. array_length(names, 1) loop
      part := names[n] || '_' || to_char(lower_t at time zone 'UTC', 'YYYYMMDD');
      continue when to_regclass('millrace.' || part) is not null;
      if names[n] = 'enqueue_refused' then
        continue when part <= oldest;
        lower_v := lower_t::text; upper_v := (lower_t + interval '7 days')::text;
      else
        lower_v := millrace.uuid_at(lower_t)::text; upper_v := millrace.uuid_at(lower_t + interval '7 days')::text;
      end if;
      -- a week with rows in the default partition stays there; the index says so, before the whole of it is read
      execute format('select exists (select 1 from millrace.%I where %I >= %L and %I < %L)', names[n] || '_default', keys[n],
                     lower_v, keys[n], upper_v) into taken;
      continue when taken;
      execute format('lock table only millrace.%I in share update exclusive mode', names[n]);
      continue when to_regclass('millrace.' || part) is not null;  -- by somebody else, meanwhile
      begin
        execute format('create table millrace.%I (like millrace.%I including all)', part, names[n]);
        if names[n] = 'enqueue_refused' then
          execute format('alter table millrace.%I enable row level security, replica identity full', part);
        end if;
        execute format('alter table millrace.%I attach partition millrace.%I for values from (%L) to (%L)', names[n], part,
                       lower_v, upper_v);
        return part;
      exception when check_violation then null;
      end;
    end loop;
  end loop;
  return null;
end $$;

-- All of them at once: for a ledger that nobody uses yet.
create or replace function ensure_partitions(since timestamptz, weeks integer) returns integer language plpgsql as $$
declare made integer := 0;
begin
  while millrace.make_partition(since, weeks) is not null loop made := made + 1; end loop;
  return made;
end $$;

-- Each in a transaction of its own. Somebody's lock is waited for 300 ms and then is an error; after 500 ms there may be more
-- to make.
create procedure make_partitions(since timestamptz, weeks integer, inout more boolean default true) language plpgsql as $$
declare begun timestamptz := clock_timestamp();
begin
  more := true;
  while more and clock_timestamp() - begun < interval '500 milliseconds' loop
    perform set_config('lock_timeout', '300', true);
    more := millrace.make_partition(since, weeks) is not null;
    commit;
  end loop;
end $$;

-- Partitions of weeks that are over by `upto` (a Monday, UTC).
create or replace function weeks_before(of_table text, upto timestamptz) returns setof text language sql as $$
  select c.oid::regclass::text from pg_catalog.pg_inherits h join pg_catalog.pg_class c on c.oid = h.inhrelid
   where h.inhparent = ('millrace.' || of_table)::regclass and c.relname ~ ('^' || of_table || '_[0-9]{8}$')
     and to_date(right(c.relname, 8), 'YYYYMMDD') + 7 <= (upto at time zone 'UTC')::date order by c.relname $$;

-- Drops them, and says how many rows of each table went. `names` in the order in which a commit locks them. While rows are
-- counted, only who writes into such a week waits; of refused rows, whose number is compared with nothing, nobody. Then an
-- automatic vacuum is got out of the way, which only gives up for somebody who waits longer than deadlock_timeout: writers do
-- not notice that. Then the tables are locked, for which who commits waits 300 ms at most and as long as the catalogue takes:
-- when somebody's transaction is in the way for longer, all locks are let go for a second.
create or replace function drop_weeks(names text[], upto timestamptz) returns bigint[] language plpgsql as $$
declare
  t text; part text; parts text[]; n bigint; counts bigint[]; stops millrace.cancel[]; since timestamptz;
begin
  for round in 1 .. 8 loop
    begin
      counts := array[]::bigint[];
      foreach t in array names loop
        counts := counts || 0::bigint;
        for part in select * from millrace.weeks_before(t, upto) loop
          if t <> 'enqueue_refused' then execute format('lock table %s in share mode', part); end if;
          execute format('select count(*) from %s', part) into n;
          counts[cardinality(counts)] := counts[cardinality(counts)] + n;
        end loop;
        if t = 'cancel' then  -- the request to stop a backfill stays, or the backfill would go on
          select array_agg(c) into stops from millrace.cancel c join millrace.backfill b on b.backfill = c.item
            where c.tableoid in (select w::regclass from millrace.weeks_before(t, upto) w);
          counts[cardinality(counts)] := counts[cardinality(counts)] - coalesce(cardinality(stops), 0);
        end if;
      end loop;
      perform set_config('lock_timeout',
        (extract(epoch from current_setting('deadlock_timeout')::interval) * 1000 + 2000)::bigint::text, true);
      foreach t in array names loop
        parts := array(select * from millrace.weeks_before(t, upto));
        continue when cardinality(parts) = 0;
        foreach part in array array['millrace.' || t || '_default'] || parts loop
          execute format('lock table %s in share update exclusive mode', part);
        end loop;
      end loop;
      since := clock_timestamp();
      foreach t in array names loop
        parts := array(select * from millrace.weeks_before(t, upto));
        continue when cardinality(parts) = 0;
        foreach part in array array['only millrace.' || t, 'millrace.' || t || '_default'] || parts loop
          perform set_config('lock_timeout',
            greatest(1, 300 - floor(extract(epoch from clock_timestamp() - since) * 1000))::text, true);
          execute format('lock table %s in access exclusive mode', part);
        end loop;
        foreach part in array parts loop execute format('drop table %s', part); end loop;
      end loop;
      insert into millrace.cancel select s.* from unnest(stops) s;
      return counts;
    exception when lock_not_available or undefined_table then
      if round = 8 then raise; end if;
      perform pg_sleep(1);
    end;
  end loop;
end $$;

-- Of those who prune one at a time: their locks on the default partitions last to the end of a step.
create or replace function prune_before(upto timestamptz, expected bigint[]) returns bigint language plpgsql as $$
declare
  names text[] := array['run', 'job', 'attempt', 'outcome', 'run_outcome', 'cancel', 'dead_action'];
  keys text[] := array['run', 'job', 'job', 'job', 'run', 'item', 'job'];
  n bigint; totals bigint[] := array[]::bigint[]; counts bigint[]; gone bigint := 0; old boolean;
begin
  if not pg_try_advisory_xact_lock(7318349394477060) then
    raise exception 'somebody else prunes' using errcode = '40001';
  end if;
  for i in 1 .. array_length(names, 1) loop
    n := 0;
    execute format('select exists (select 1 from millrace.%I where %I < $1)', names[i] || '_default', keys[i])
      into old using millrace.uuid_at(upto);
    if old then
      execute format('delete from millrace.%I where %I < $1', names[i] || '_default', keys[i]) ||
        case names[i] when 'cancel' then ' and not exists (select 1 from millrace.backfill b where b.backfill = item)' else '' end
        using millrace.uuid_at(upto);
      get diagnostics n = row_count;
    end if;
    totals := totals || n;
  end loop;
  counts := millrace.drop_weeks(names, upto);
  for i in 1 .. array_length(names, 1) loop
    if totals[i] + counts[i] <> expected[i] then
      raise exception 'table %: % rows would go, % were looked at', names[i], totals[i] + counts[i], expected[i]
        using errcode = '40001';
    end if;
    gone := gone + expected[i];
  end loop;
  return gone;
end $$;
)sql";

// What is to be cancelled is found among all that waits in an outbox. Weeks begin at midnight UTC in every session. A week of
// refused rows that cannot be dropped, because of somebody's view, keeps no later one.
constexpr std::string_view kVersion20 = R"sql(
alter table outbox add column cancel_requested smallint not null default 0;
update outbox o set cancel_requested = 1 where exists (select 1 from cancel c where c.item = o.item);
create index outbox_cancels on outbox (shard, item) where cancel_requested = 1;

alter function make_partition(timestamptz, integer) set timezone to 'UTC';

-- A week at a time, or rows_max of those that are in no week's partition, or in one on which something else depends: that one
-- is no partition any more when it is empty.
create or replace function prune_refused(upto timestamptz, rows_max bigint, out gone bigint, out more boolean) language plpgsql as $$
declare part text;
begin
  gone := 0;
  more := true;
  if not pg_try_advisory_xact_lock(7318349394477060) then  -- somebody else prunes
    perform pg_sleep(0.1);
    return;
  end if;
  if exists (select 1 from millrace.enqueue_refused_default r where r.refused_at < upto) then
    delete from millrace.enqueue_refused_default where ctid = any (array(
      select r.ctid from millrace.enqueue_refused_default r where r.refused_at < upto limit rows_max));
    get diagnostics gone = row_count;
    return;
  end if;
  select w into part from millrace.weeks_before('enqueue_refused', upto) w limit 1;
  if found then
    begin
      gone := (millrace.drop_weeks(array['enqueue_refused'],
                                   (to_date(right(part, 8), 'YYYYMMDD') + 7)::timestamp at time zone 'UTC'))[1];
    exception when dependent_objects_still_exist then
      execute format('delete from %1$s where ctid = any (array(select r.ctid from %1$s r limit $1))', part) using rows_max;
      get diagnostics gone = row_count;
      if gone = 0 then
        perform set_config('lock_timeout', '300', true);
        execute format('alter table millrace.enqueue_refused detach partition %s', part);
      end if;
      return;
    end;
  end if;
  more := exists (select 1 from millrace.weeks_before('enqueue_refused', upto));
end $$;
)sql";

// Where clients reach a broker: whoever asks about an org finds its owner, whichever broker it has been told of.
constexpr std::string_view kVersion21 = R"sql(
alter table broker_presence add column clients text not null default '';
drop function announce_broker(uuid, text, boolean, bigint, bigint);
create function announce_broker(who uuid, who_name text, who_clients text, leaving boolean, ttl_ms bigint, kept_ms bigint)
  returns setof uuid language plpgsql as $$
declare now_t timestamptz := clock_timestamp(); ttl interval := ttl_ms * interval '1 millisecond';
begin
  if leaving then
    delete from millrace.broker_presence b where b.owner = who;
  else
    insert into millrace.broker_presence (owner, name, clients, renewed_at) values (who, who_name, who_clients, now_t)
      on conflict (owner) do update set renewed_at = excluded.renewed_at;
  end if;
  delete from millrace.broker_presence b where b.renewed_at < now_t - kept_ms * interval '1 millisecond';
  -- Who lies far ahead said so before the ledger's clock was set back: he says it again in a second, if he lives.
  return query select b.owner from millrace.broker_presence b
    where b.renewed_at > now_t - ttl and b.renewed_at < now_t + ttl order by b.owner;
end $$;
)sql";

// No command speaks for an org below 1: what was enqueued for one ran, and nobody could see it. Rows that are there are refused
// when they are taken. Whoever inserts waits a moment at most.
constexpr std::string_view kVersion22 = R"sql(
do $$
begin
  loop
    begin
      perform set_config('lock_timeout', '300', true);
      alter table enqueue add constraint enqueue_org_is_1_or_more check (org >= 1) not valid;
      exit;
    exception when lock_not_available then
      perform pg_sleep(0.3);
    end;
  end loop;
  set local lock_timeout to default;
end $$;
)sql";

constexpr std::string_view kWeeks[] = {kVersion16, kVersion17, kVersion18, kVersion19, kVersion20, kVersion21, kVersion22};

}  // namespace

std::span<const std::string_view> PostgresWeekMigrations() { return kWeeks; }

}  // namespace millrace::ledger
