#include "common/ledger/postgres_insert.h"

#include <fmt/format.h>

#include <bit>

#include "common/base/check.h"

namespace millrace::ledger {
namespace {

PgParams::Element ElementOf(ColumnType type) {
  switch (type) {
    case ColumnType::kInt: return PgParams::Element::kInt;
    case ColumnType::kBool: return PgParams::Element::kBool;
    case ColumnType::kText: return PgParams::Element::kText;
    case ColumnType::kBytes: return PgParams::Element::kBytes;
    case ColumnType::kUuid: return PgParams::Element::kId;
    case ColumnType::kTime: return PgParams::Element::kTime;
    case ColumnType::kUuidList: return PgParams::Element::kText;
  }
  MILLRACE_CHECK(false, "column type {}", static_cast<int>(type));
}

// unnest flattens arrays of arrays, so a list of ids travels as its text form.
std::string UuidListText(std::string_view bytes) {
  std::string text = "{";
  for (std::size_t at = 0; at + 16 <= bytes.size(); at += 16) {
    if (at > 0) text += ',';
    text += Uuid::FromBytes(bytes.substr(at, 16))->ToString();
  }
  return text + "}";
}

void AddElement(PgParams& params, ColumnType type, const Value& value) {
  if (value.null) {
    params.AddNull();
    return;
  }
  switch (type) {
    case ColumnType::kInt: params.AddInt(value.number); break;
    case ColumnType::kBool: params.AddBool(value.number != 0); break;
    case ColumnType::kTime: params.AddTime(FromUnixMicros(value.number)); break;
    case ColumnType::kUuidList: params.AddBytes(UuidListText(value.bytes)); break;
    default: params.AddBytes(value.bytes); break;
  }
}

void AddSingle(PgParams& params, ColumnType type, const Value& value) {
  if (value.null) {
    params.Null();
    return;
  }
  switch (type) {
    case ColumnType::kInt: params.Int(value.number); break;
    case ColumnType::kBool: params.Bool(value.number != 0); break;
    case ColumnType::kTime: params.Time(FromUnixMicros(value.number)); break;
    case ColumnType::kUuidList: params.Text(UuidListText(value.bytes)); break;
    case ColumnType::kUuid: params.Id(UuidOf(value)); break;
    case ColumnType::kBytes: params.Bytes(value.bytes); break;
    case ColumnType::kText: params.Text(value.bytes); break;
  }
}

std::string_view TypeName(ColumnType type) {
  switch (type) {
    case ColumnType::kInt: return "bigint";
    case ColumnType::kBool: return "boolean";
    case ColumnType::kText: return "text";
    case ColumnType::kBytes: return "bytea";
    case ColumnType::kUuid: return "uuid";
    case ColumnType::kTime: return "timestamptz";
    case ColumnType::kUuidList: return "text";
  }
  MILLRACE_CHECK(false, "column type {}", static_cast<int>(type));
}

// Parameters: the columns in order, then writer, seq, the index of the first row, and with arrays the one of the last.
// Functions in the list of a select go forward together, an element each per row; in `from` each would be stored away first.
std::string TextOf(Table table, std::uint32_t once) {
  const TableDef& def = DefOf(table);
  const std::size_t n = def.columns.size();
  std::string list;
  bool arrays = false;
  for (std::size_t i = 0; i < n; ++i) {
    const ColumnType type = def.columns[i].type;
    const bool alike = (once >> i & 1U) != 0;
    list += alike ? fmt::format("${}::{}", i + 1, TypeName(type)) : fmt::format("unnest(${})", i + 1);
    list += type == ColumnType::kUuidList ? "::uuid[], " : ", ";
    arrays |= !alike;
  }
  if (!arrays) return fmt::format("{}values ({}${}, ${}, ${})", InsertHead(table), list, n + 1, n + 2, n + 3);
  return fmt::format("{}select {}${}, ${}, generate_series(${}, ${})", InsertHead(table), list, n + 1, n + 2, n + 3, n + 4);
}

bool Same(const Value& a, const Value& b) { return a.null == b.null && a.number == b.number && a.bytes == b.bytes; }

// The columns in which all rows are alike.
std::uint32_t AlikeIn(const WriteSet::TableRows& rows, std::size_t width) {
  std::uint32_t alike = (1U << width) - 1;
  for (std::size_t at = width; at < rows.cells.size() && alike != 0; at += width)
    for (std::uint32_t left = alike; left != 0; left &= left - 1) {
      const auto c = static_cast<std::size_t>(std::countr_zero(left));
      if (!Same(rows.cells[c], rows.cells[at + c])) alike &= ~(1U << c);
    }
  // Rows that are alike in all columns are still so many rows: their keys must collide, not vanish.
  if (rows.cells.size() > width && alike == (1U << width) - 1) alike &= ~1U;
  return alike;
}

}  // namespace

RowInserter::Columns RowInserter::FormFor(Table table, Columns same, std::size_t rows) {
  auto& forms = forms_[static_cast<std::size_t>(table)];
  if (forms.contains(same)) return same;
  const Columns all = (1U << DefOf(table).columns.size()) - 1;
  if (same == all || (rows >= kRowsOfNewForm && forms.size() < kFormsMax)) return same;
  Columns best = 0;  // of those that are known, the one that leaves the fewest arrays
  for (const auto& [form, text] : forms)
    if ((form & ~same) == 0 && std::popcount(form) > std::popcount(best)) best = form;
  return best;
}

PgStatement RowInserter::Insert(Table table, const WriteSet::TableRows& rows, const AuditRecord& record) {
  const TableDef& def = DefOf(table);
  const std::size_t width = def.columns.size(), count = rows.index.size();
  MILLRACE_CHECK(width < 32 && count > 0, "{} rows of {} columns", count, width);
  const Columns once = FormFor(table, AlikeIn(rows, width), count);
  auto [form, is_new] = forms_[static_cast<std::size_t>(table)].try_emplace(once);
  if (is_new) form->second = TextOf(table, once);
  PgParams params;
  for (std::size_t c = 0; c < width; ++c) {
    const ColumnType type = def.columns[c].type;
    if ((once >> c & 1U) != 0) {
      AddSingle(params, type, rows.cells[c]);
      continue;
    }
    params.BeginArray(ElementOf(type), count);
    for (std::size_t r = 0; r < count; ++r) AddElement(params, type, rows.cells[r * width + c]);
    params.EndArray();
  }
  params.Id(record.writer.uuid).Int(static_cast<std::int64_t>(record.seq)).Int(rows.index.front());
  if (once != (1U << width) - 1) params.Int(rows.index.back());
  return {form->second, std::move(params)};
}

}  // namespace millrace::ledger
