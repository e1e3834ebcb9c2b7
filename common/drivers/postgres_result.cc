#include "common/drivers/postgres_impl.h"

#include <bit>

#include "common/base/check.h"
#include "common/drivers/postgres_types.h"

namespace millrace {
namespace {

std::uint64_t BigEndian(const char* bytes, int size) {
  std::uint64_t value = 0;
  for (int i = 0; i < size; ++i) value = (value << 8) | static_cast<std::uint8_t>(bytes[i]);
  return value;
}

}  // namespace

PgResult::PgResult() = default;
PgResult::PgResult(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PgResult::PgResult(PgResult&&) noexcept = default;
PgResult& PgResult::operator=(PgResult&&) noexcept = default;
PgResult::~PgResult() = default;

int PgResult::rows() const { return impl_ ? PQntuples(impl_->result.get()) : 0; }
int PgResult::columns() const { return impl_ ? PQnfields(impl_->result.get()) : 0; }

std::int64_t PgResult::affected() const {
  if (!impl_) return 0;
  const char* text = PQcmdTuples(impl_->result.get());
  return *text == '\0' ? 0 : std::strtoll(text, nullptr, 10);
}

std::string_view PgResult::column_name(int column) const {
  const char* name = impl_ ? PQfname(impl_->result.get(), column) : nullptr;
  return name == nullptr ? std::string_view{} : std::string_view{name};
}

bool PgResult::IsNull(int row, int column) const {
  MILLRACE_CHECK(row >= 0 && row < rows() && column >= 0 && column < columns(), "cell ({}, {}) of a {} x {} result", row,
                 column, rows(), columns());
  return PQgetisnull(impl_->result.get(), row, column) != 0;
}

std::string_view PgResult::Bytes(int row, int column) const {
  MILLRACE_CHECK(!IsNull(row, column), "column '{}' of row {} is null", column_name(column), row);
  PGresult* r = impl_->result.get();
  return {PQgetvalue(r, row, column), static_cast<std::size_t>(PQgetlength(r, row, column))};
}

std::int64_t PgResult::Int(int row, int column) const {
  const std::string_view bytes = Bytes(row, column);
  const char* p = bytes.data();
  switch (PQftype(impl_->result.get(), column)) {
    case pg::kInt2: return static_cast<std::int16_t>(BigEndian(p, 2));
    case pg::kInt4: return static_cast<std::int32_t>(BigEndian(p, 4));
    case pg::kInt8: return static_cast<std::int64_t>(BigEndian(p, 8));
    case pg::kOid: return static_cast<std::int64_t>(BigEndian(p, 4));
    default: break;
  }
  MILLRACE_CHECK(false, "column '{}' (type {}) is not an integer", column_name(column), PQftype(impl_->result.get(), column));
}

bool PgResult::Bool(int row, int column) const {
  const std::string_view bytes = Bytes(row, column);
  MILLRACE_CHECK(PQftype(impl_->result.get(), column) == pg::kBool, "column '{}' is not boolean", column_name(column));
  return bytes[0] != 0;
}

double PgResult::Double(int row, int column) const {
  const std::string_view bytes = Bytes(row, column);
  const Oid type = PQftype(impl_->result.get(), column);
  MILLRACE_CHECK(type == pg::kFloat8 || type == pg::kFloat4, "column '{}' is not floating point", column_name(column));
  if (type == pg::kFloat8) return std::bit_cast<double>(BigEndian(bytes.data(), 8));
  return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(BigEndian(bytes.data(), 4))));
}

Uuid PgResult::Id(int row, int column) const {
  const std::string_view bytes = Bytes(row, column);
  MILLRACE_CHECK(PQftype(impl_->result.get(), column) == pg::kUuid, "column '{}' is not a uuid", column_name(column));
  return *Uuid::FromBytes(bytes);
}

WallTime PgResult::Time(int row, int column) const {
  const std::string_view bytes = Bytes(row, column);
  const Oid type = PQftype(impl_->result.get(), column);
  MILLRACE_CHECK(type == pg::kTimestamptz || type == pg::kTimestamp, "column '{}' is not a timestamp", column_name(column));
  return FromUnixMicros(pg::ToUnix(static_cast<std::int64_t>(BigEndian(bytes.data(), 8))));
}

std::vector<std::string> PgResult::TextArray(int row, int column) const {
  const std::string_view bytes = Bytes(row, column);
  std::vector<std::string> values;
  MILLRACE_CHECK(bytes.size() >= 12, "column '{}' is not an array", column_name(column));
  const auto dimensions = static_cast<std::int32_t>(BigEndian(bytes.data(), 4));
  if (dimensions == 0) return values;
  MILLRACE_CHECK(dimensions == 1 && bytes.size() >= 20, "column '{}' is not an array of one dimension", column_name(column));
  const auto count = static_cast<std::size_t>(BigEndian(bytes.data() + 12, 4));
  std::size_t at = 20;
  for (std::size_t i = 0; i < count; ++i) {
    MILLRACE_CHECK(at + 4 <= bytes.size(), "column '{}': a cut array", column_name(column));
    const auto length = static_cast<std::int32_t>(BigEndian(bytes.data() + at, 4));
    at += 4;
    if (length < 0) {
      values.emplace_back();
      continue;
    }
    MILLRACE_CHECK(at + static_cast<std::size_t>(length) <= bytes.size(), "column '{}': a cut array", column_name(column));
    values.emplace_back(bytes.substr(at, static_cast<std::size_t>(length)));
    at += static_cast<std::size_t>(length);
  }
  return values;
}

PgResult::Kind PgResult::KindOf(int row, int column) const { return IsNull(row, column) ? Kind::kNull : KindOf(column); }

PgResult::Kind PgResult::KindOf(int column) const {
  switch (PQftype(impl_->result.get(), column)) {
    case pg::kInt2:
    case pg::kInt4:
    case pg::kInt8:
    case pg::kOid: return Kind::kInt;
    case pg::kBool: return Kind::kBool;
    case pg::kTimestamp:
    case pg::kTimestamptz: return Kind::kTime;
    default: return Kind::kBytes;
  }
}

}  // namespace millrace
