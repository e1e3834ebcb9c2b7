#include "worker/stage/load/pg_target.h"

#include <algorithm>
#include <map>
#include <utility>

namespace millrace::load {
namespace {

Outcome<std::vector<std::string>> TextColumn(PgFence& fence, std::string_view sql, const PgParams& params) {
  MILLRACE_TRY_ASSIGN(PgResult result, fence.Query(sql, params));
  std::vector<std::string> out;
  for (int i = 0; i < result.rows(); ++i) out.push_back(result.Text(i, 0));
  return out;
}

constexpr std::string_view kColumnsSql = R"sql(
select a.attname::text, format_type(a.atttypid, a.atttypmod)::text, a.attnotnull,
       (a.atthasdef or a.attidentity <> '') as has_default, a.attgenerated <> '' as generated,
       (select quote_ident(n.nspname) || '.' || quote_ident(c.collname) from pg_collation c join pg_namespace n on n.oid = c.collnamespace
        where c.oid = a.attcollation and c.oid <> (select typcollation from pg_type where oid = a.atttypid)) as collation
from pg_attribute a where a.attrelid = $1::oid and a.attnum > 0 and not a.attisdropped order by a.attnum)sql";

constexpr std::string_view kUniqueSql = R"sql(
select i.indexrelid::bigint, (select array_agg(a.attname::text order by a.attname::text) from pg_attribute a
        where a.attrelid = i.indrelid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])) as names
from pg_index i where i.indrelid = $1::oid and i.indisunique and i.indisvalid and i.indimmediate
  and i.indpred is null and i.indexprs is null order by 1)sql";

// What LIKE, a rename and our own statements do not carry over, as words for people.
constexpr std::string_view kObstaclesSql = R"sql(
with t as (select * from pg_class where oid = $1::oid)
select 'partitions' from t where relkind = 'p' or relispartition
union all select 'inheritance' from pg_inherits where inhrelid = $1::oid or inhparent = $1::oid
union all select 'row security' from t where relrowsecurity or exists (select 1 from pg_policy where polrelid = $1::oid)
union all select 'replica identity' from t where relreplident <> 'd'
union all select 'typed table' from t where reloftype <> 0
union all select 'rules' from pg_rewrite where ev_class = $1::oid
union all select 'trigger ' || tgname from pg_trigger where tgrelid = $1::oid and not tgisinternal
union all select 'publication' from pg_publication_rel where prrelid = $1::oid
union all select 'extended statistics' from pg_statistic_ext where stxrelid = $1::oid
union all select 'security label' from pg_seclabel where classoid = 'pg_class'::regclass and objoid = $1::oid
union all select 'tablespace' from t where reltablespace <> 0
union all select 'identity or generated column ' || attname from pg_attribute
          where attrelid = $1::oid and not attisdropped and (attidentity <> '' or attgenerated <> '')
union all select 'column options of ' || attname from pg_attribute
          where attrelid = $1::oid and not attisdropped and attnum > 0
            and exists (select 1 from unnest(attoptions) o where o like 'n\_distinct%')
union all select 'owned sequence ' || d.objid::regclass::text from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
          where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = $1::oid
            and d.deptype in ('a', 'i')
union all select distinct 'view ' || r.ev_class::regclass::text from pg_depend d join pg_rewrite r on r.oid = d.objid
          where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = $1::oid
            and r.ev_class <> $1::oid
union all select 'function ' || d.objid::regprocedure::text from pg_depend d
          where d.classid = 'pg_proc'::regclass and (d.refobjid = $1::oid or d.refobjid in (select reltype from t))
union all select 'index that is not valid' from pg_index where indrelid = $1::oid and not indisvalid
union all select 'constraint that is not validated' from pg_constraint where conrelid = $1::oid and not convalidated)sql";

constexpr std::string_view kReferencedSql =
    "select conrelid::regclass::text || '.' || conname from pg_constraint where contype = 'f' and confrelid = $1::oid"
    " and conrelid <> $1::oid union all select conname::text from pg_constraint where contype = 'f' and confrelid = $1::oid"
    " and conrelid = $1::oid";

constexpr std::string_view kFingerprintSql = R"sql(
with lines(line) as (
  select 'column ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' '
         || coalesce(pg_get_expr(d.adbin, d.adrelid), '-') || ' ' || coalesce(col_description(a.attrelid, a.attnum), '-')
         || ' ' || a.attstorage::text || a.attcompression::text || ' ' || a.attcollation || ' ' || coalesce(a.attstattarget, -1)
    from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = $1::oid and a.attnum > 0 and not a.attisdropped
  union all select 'column grant ' || a.attname || ' ' || g.grantee || ' ' || g.privilege_type || ' ' || g.is_grantable
    from pg_attribute a, aclexplode(a.attacl) g where a.attrelid = $1::oid and not a.attisdropped
  union all select 'index ' || c.relname || ' ' || i.indisclustered || ' ' || substr(pg_get_indexdef(i.indexrelid), strpos(pg_get_indexdef(i.indexrelid), ' USING '))
         || ' ' || i.indisunique || ' ' || coalesce(obj_description(c.oid, 'pg_class'), '-')
    from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = $1::oid
  union all select 'constraint ' || conname || ' ' || pg_get_constraintdef(oid) || ' '
         || coalesce(obj_description(oid, 'pg_constraint'), '-')
    from pg_constraint where conrelid = $1::oid
  union all select 'table ' || relowner || ' ' || relpersistence::text || ' ' || coalesce(array_to_string(reloptions, ','), '-') || ' '
         || relam || ' ' || coalesce(obj_description(oid, 'pg_class'), '-') from pg_class where oid = $1::oid
  union all select 'grant ' || g.grantee || ' ' || g.privilege_type || ' ' || g.is_grantable
    from pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) g where c.oid = $1::oid)
select coalesce(string_agg(line, E'\n' order by line), '') from lines)sql";

std::string GranteeSql(std::string_view role) { return role.empty() ? std::string("public") : PgIdentifier(role); }

// Revokes whatever default privileges gave the new table, then grants what the old one had.
Outcome<void> AddGrants(PgFence& fence, const PgTarget& target, std::string_view new_table, std::vector<std::string>& out) {
  MILLRACE_TRY_ASSIGN(PgResult plain,
                      fence.Query("select coalesce(r.rolname::text, ''), g.privilege_type, g.is_grantable, c.relacl is null,"
                                  " pg_get_userbyid(c.relowner)::text"
                                  " from pg_class c left join lateral aclexplode(c.relacl) g on true"
                                  " left join pg_roles r on r.oid = g.grantee where c.oid = $1::oid",
                                  PgParams{}.Int(target.oid)));
  MILLRACE_TRY_ASSIGN(PgResult defaults,
                      fence.Query("select distinct coalesce(r.rolname::text, '') from pg_class c, aclexplode(c.relacl) g"
                                  " left join pg_roles r on r.oid = g.grantee where c.oid = to_regclass($1)",
                                  PgParams{}.Text(new_table)));
  for (int i = 0; i < defaults.rows(); ++i)
    out.push_back(fmt::format("revoke all on {} from {}", new_table, GranteeSql(defaults.Bytes(i, 0))));
  if (plain.rows() > 0 && !plain.Bool(0, 3)) {
    out.push_back(fmt::format("revoke all on {} from {}", new_table, PgIdentifier(plain.Bytes(0, 4))));
    for (int i = 0; i < plain.rows(); ++i)
      if (!plain.IsNull(i, 1))
        out.push_back(fmt::format("grant {} on {} to {}{}", plain.Bytes(i, 1), new_table, GranteeSql(plain.Bytes(i, 0)),
                                  plain.Bool(i, 2) ? " with grant option" : ""));
  }
  MILLRACE_TRY_ASSIGN(
      PgResult columns,
      fence.Query("select a.attname::text, coalesce(r.rolname::text, ''), g.privilege_type, g.is_grantable"
                  " from pg_attribute a cross join lateral aclexplode(a.attacl) g"
                  " left join pg_roles r on r.oid = g.grantee where a.attrelid = $1::oid and not a.attisdropped",
                  PgParams{}.Int(target.oid)));
  for (int i = 0; i < columns.rows(); ++i)
    out.push_back(fmt::format("grant {} ({}) on {} to {}{}", columns.Bytes(i, 2), PgIdentifier(columns.Bytes(i, 0)), new_table,
                              GranteeSql(columns.Bytes(i, 1)), columns.Bool(i, 3) ? " with grant option" : ""));
  return {};
}

Outcome<void> AddConstraints(PgFence& fence, const PgTarget& target, std::string_view new_table, std::string_view hash,
                             SwapPlan& plan) {
  MILLRACE_TRY_ASSIGN(PgResult found,
                      fence.Query("select conname::text, contype::text, pg_get_constraintdef(oid),"
                                  " coalesce(obj_description(oid, 'pg_constraint'), ''),"
                                  " coalesce(obj_description(conindid, 'pg_class'), '')"
                                  " from pg_constraint where conrelid = $1::oid and contype in ('p', 'u', 'x', 'f')"
                                  " order by contype = 'f', conname",
                                  PgParams{}.Int(target.oid)));
  for (int i = 0; i < found.rows(); ++i) {
    const std::string name = PgIdentifier(found.Bytes(i, 0));
    const bool foreign = found.Bytes(i, 1) == "f";
    const std::string temporary = foreign ? name : PgIdentifier(fmt::format("c_{}_{}", hash, i));
    plan.build.push_back(fmt::format("alter table {} add constraint {} {}", new_table, temporary, found.Bytes(i, 2)));
    if (!foreign)
      plan.rename.push_back(fmt::format("alter table {} rename constraint {} to {}", target.Quoted(), temporary, name));
    if (!found.Bytes(i, 3).empty())
      plan.rename.push_back(
          fmt::format("comment on constraint {} on {} is {}", name, target.Quoted(), PgLiteral(found.Bytes(i, 3))));
    if (!foreign && !found.Bytes(i, 4).empty())
      plan.rename.push_back(
          fmt::format("comment on index {}.{} is {}", PgIdentifier(target.schema), name, PgLiteral(found.Bytes(i, 4))));
  }
  return {};
}

Outcome<void> AddIndexes(PgFence& fence, const PgTarget& target, std::string_view new_table, std::string_view hash,
                         SwapPlan& plan) {
  MILLRACE_TRY_ASSIGN(
      PgResult found,
      fence.Query(
          "select c.relname::text, pg_get_indexdef(i.indexrelid), i.indisunique,"
          " coalesce(obj_description(c.oid, 'pg_class'), ''), i.indisclustered"
          " from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = $1::oid"
          " and not exists (select 1 from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))"
          " order by c.relname",
          PgParams{}.Int(target.oid)));
  for (int i = 0; i < found.rows(); ++i) {
    const std::string name = PgIdentifier(found.Bytes(i, 0));
    const std::string definition = found.Text(i, 1);
    // pg_get_indexdef quotes only where it must; comparing unquoted and quoted heads finds where the tail begins.
    const auto using_at = definition.find(" USING ");
    const std::string_view head = std::string_view(definition).substr(0, using_at);
    if (using_at == std::string::npos || std::count(head.begin(), head.end(), '"') % 2 != 0)
      return Refuse("replace_refused", fmt::format("index {} has a definition that cannot be copied: {}", name, definition));
    const std::string temporary = PgIdentifier(fmt::format("i_{}_{}", hash, i));
    plan.build.push_back(fmt::format("create {}index {} on {}{}", found.Bool(i, 2) ? "unique " : "", temporary, new_table,
                                     definition.substr(using_at)));
    const std::string schema = PgIdentifier(target.schema);
    plan.rename.push_back(fmt::format("alter index {}.{} rename to {}", schema, temporary, name));
    if (!found.Bytes(i, 3).empty())
      plan.rename.push_back(fmt::format("comment on index {}.{} is {}", schema, name, PgLiteral(found.Bytes(i, 3))));
  }
  MILLRACE_TRY_ASSIGN(std::vector<std::string> clustered,
                      TextColumn(fence,
                                 "select c.relname::text from pg_index i join pg_class c on c.oid = i.indexrelid"
                                 " where i.indrelid = $1::oid and i.indisclustered",
                                 PgParams{}.Int(target.oid)));
  for (const std::string& index : clustered)
    plan.rename.push_back(fmt::format("alter table {} cluster on {}", target.Quoted(), PgIdentifier(index)));
  return {};
}

}  // namespace

std::string PgTarget::Quoted() const { return PgIdentifier(schema) + "." + PgIdentifier(table); }

Outcome<PgTarget> DescribeTarget(PgFence& fence, std::string_view name) {
  PgTarget target;
  const auto dot = name.find('.');
  target.schema = dot == std::string_view::npos ? "public" : std::string(name.substr(0, dot));
  target.table = std::string(dot == std::string_view::npos ? name : name.substr(dot + 1));
  if (target.schema.empty() || target.table.empty() || target.table.find('.') != std::string::npos ||
      name.find('\0') != std::string_view::npos)
    return Refuse("invalid_target", fmt::format("table '{}' is not schema.table or table", name));
  if (target.schema.size() > 63 || target.table.size() > 63)
    return Refuse("invalid_target", fmt::format("table '{}': PostgreSQL cuts names beyond 63 bytes", name));
  if (target.schema == "millrace") return Refuse("invalid_target", "schema millrace belongs to Millrace; choose another one");
  MILLRACE_TRY_ASSIGN(
      PgResult found,
      fence.Query("select c.oid::bigint, c.relkind::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
                  " where n.nspname = $1 and c.relname = $2",
                  PgParams{}.Text(target.schema).Text(target.table)));
  if (found.rows() == 0) return target;
  target.exists = true;
  target.oid = found.Int(0, 0);
  target.kind = found.Bytes(0, 1).front();
  if (target.kind != 'r' && target.kind != 'p')
    return Refuse("invalid_target", fmt::format("{} is not a table (relkind {})", name, target.kind));
  MILLRACE_TRY_ASSIGN(PgResult columns, fence.Query(kColumnsSql, PgParams{}.Int(target.oid)));
  for (int i = 0; i < columns.rows(); ++i)
    target.columns.push_back({columns.Text(i, 0), columns.Text(i, 1), columns.Bool(i, 2), columns.Bool(i, 3),
                              columns.Bool(i, 4), columns.IsNull(i, 5) ? "" : columns.Text(i, 5)});
  MILLRACE_TRY_ASSIGN(PgResult unique, fence.Query(kUniqueSql, PgParams{}.Int(target.oid)));
  for (int i = 0; i < unique.rows(); ++i) {
    target.unique_keys.push_back(unique.TextArray(i, 1));
    std::sort(target.unique_keys.back().begin(), target.unique_keys.back().end());
  }
  return target;
}

Outcome<std::vector<PgColumn>> PlanColumns(const PgTarget& target, const std::vector<ColumnSpec>& dataset) {
  std::vector<PgColumn> out;
  std::string diff;
  const auto complain = [&](const std::string& line) { diff += (diff.empty() ? "" : "; ") + line; };
  for (const ColumnSpec& column : dataset) {
    const auto type = ParseDuckType(column.type);
    if (!type) {
      complain(fmt::format("{}: {}", column.name, type.error().message));
      continue;
    }
    std::string pg_type = PgTypeFor(*type);
    if (target.exists) {
      const auto found = std::find_if(target.columns.begin(), target.columns.end(),
                                      [&](const PgTarget::Column& c) { return c.name == column.name; });
      if (found == target.columns.end()) {
        complain(fmt::format("{}: {} in the dataset, missing in the table (alter table {} add column {} {})", column.name,
                             column.type, target.Quoted(), PgIdentifier(column.name), pg_type));
        continue;
      }
      if (found->generated) {
        complain(fmt::format("{}: generated in the table", column.name));
        continue;
      }
      pg_type = found->type;
    } else if (column.name.size() > 63) {
      complain(fmt::format("{}: longer than 63 bytes", column.name));
      continue;
    }
    auto planned = PlanPgColumn(column, pg_type);
    if (planned)
      out.push_back(std::move(*planned));
    else
      complain(fmt::format("{}: {} in the dataset, {} in the table", column.name, column.type, pg_type));
  }
  for (const PgTarget::Column& column : target.columns) {
    const bool loaded = std::any_of(dataset.begin(), dataset.end(), [&](const ColumnSpec& c) { return c.name == column.name; });
    if (!loaded && column.not_null && !column.has_default && !column.generated)
      complain(fmt::format("{}: not in the dataset, {} not null without default in the table", column.name, column.type));
  }
  if (!diff.empty())
    return Refuse("schema_mismatch", "the dataset does not fit the table: " + diff +
                                         "; cast or rename the columns in a transform, or alter the table");
  return out;
}

std::string CreateBody(const std::vector<PgColumn>& columns, const std::vector<std::string>& primary_key) {
  std::string body = "(";
  for (const PgColumn& c : columns)
    body +=
        fmt::format("{}{} {}{}", body.size() == 1 ? "" : ", ", PgIdentifier(c.name), c.pg_type, c.not_null ? " not null" : "");
  std::string key;
  for (const std::string& k : primary_key) key += (key.empty() ? "" : ", ") + PgIdentifier(k);
  return body + (key.empty() ? ")" : ", primary key (" + key + "))");
}

std::string ColumnList(const std::vector<PgColumn>& columns) {
  std::string list;
  for (const PgColumn& c : columns) list += (list.empty() ? "" : ", ") + PgIdentifier(c.name);
  return list;
}

Outcome<SwapObstacles> FindObstacles(PgFence& fence, const PgTarget& target) {
  SwapObstacles out;
  MILLRACE_TRY_ASSIGN(out.keep_identity, TextColumn(fence, kObstaclesSql, PgParams{}.Int(target.oid)));
  MILLRACE_TRY_ASSIGN(out.referenced, TextColumn(fence, kReferencedSql, PgParams{}.Int(target.oid)));
  return out;
}

Outcome<std::string> Fingerprint(PgFence& fence, const PgTarget& target) {
  MILLRACE_TRY_ASSIGN(PgResult result, fence.Query(kFingerprintSql, PgParams{}.Int(target.oid)));
  return result.Text(0, 0);
}

Outcome<SwapPlan> PlanSwap(PgFence& fence, const PgTarget& target, std::string_view new_table, std::string_view hash) {
  SwapPlan plan;
  MILLRACE_TRY(AddIndexes(fence, target, new_table, hash, plan));
  MILLRACE_TRY(AddConstraints(fence, target, new_table, hash, plan));
  MILLRACE_TRY_ASSIGN(
      PgResult table,
      fence.Query("select coalesce(array_to_string(reloptions, ', '), ''), coalesce(obj_description(oid, 'pg_class'), ''),"
                  " pg_get_userbyid(relowner)::text, pg_get_userbyid(relowner) = current_user"
                  " from pg_class where oid = $1::oid",
                  PgParams{}.Int(target.oid)));
  if (table.rows() != 1) return Refuse("replace_refused", "the table vanished");
  if (!table.Bytes(0, 0).empty()) plan.build.push_back(fmt::format("alter table {} set ({})", new_table, table.Bytes(0, 0)));
  if (!table.Bytes(0, 1).empty())
    plan.build.push_back(fmt::format("comment on table {} is {}", new_table, PgLiteral(table.Bytes(0, 1))));
  if (!table.Bool(0, 3))
    plan.build.push_back(fmt::format("alter table {} owner to {}", new_table, PgIdentifier(table.Bytes(0, 2))));
  MILLRACE_TRY(AddGrants(fence, target, new_table, plan.build));
  MILLRACE_TRY_ASSIGN(plan.fingerprint, Fingerprint(fence, target));
  return plan;
}

}  // namespace millrace::load
