#include <cstring>

#include "common/base/check.h"
#include "common/drivers/postgres.h"
#include "common/drivers/postgres_types.h"

namespace millrace {
namespace {

constexpr pg::Oid kElementTypes[] = {pg::kInt8, pg::kBool, pg::kText, pg::kBytea, pg::kUuid, pg::kTimestamptz};
constexpr pg::Oid kArrayTypes[] = {pg::kInt8Array,  pg::kBoolArray, pg::kTextArray,
                                   pg::kByteaArray, pg::kUuidArray, pg::kTimestamptzArray};

}  // namespace

void PgParams::PutInt32(std::int32_t value) {
  const auto bits = static_cast<std::uint32_t>(value);
  for (int shift = 24; shift >= 0; shift -= 8) buffer_ += static_cast<char>(static_cast<std::uint8_t>(bits >> shift));
}

void PgParams::PutInt64(std::int64_t value) {
  const auto bits = static_cast<std::uint64_t>(value);
  for (int shift = 56; shift >= 0; shift -= 8) buffer_ += static_cast<char>(static_cast<std::uint8_t>(bits >> shift));
}

void PgParams::Put(std::uint32_t type, std::string_view bytes) {
  slots_.push_back({type, buffer_.size(), static_cast<std::int64_t>(bytes.size())});
  buffer_ += bytes;
}

PgParams& PgParams::Int(std::int64_t value) {
  slots_.push_back({pg::kInt8, buffer_.size(), 8});
  PutInt64(value);
  return *this;
}
PgParams& PgParams::Bool(bool value) {
  const char byte = value ? 1 : 0;
  Put(pg::kBool, {&byte, 1});
  return *this;
}
PgParams& PgParams::Text(std::string_view value) {
  Put(pg::kText, value);
  return *this;
}
PgParams& PgParams::Bytes(std::string_view value) {
  Put(pg::kBytea, value);
  return *this;
}
PgParams& PgParams::Id(const Uuid& value) {
  Put(pg::kUuid, value.AsBytes());
  return *this;
}
PgParams& PgParams::Time(WallTime value) {
  slots_.push_back({pg::kTimestamptz, buffer_.size(), 8});
  PutInt64(pg::FromUnix(ToUnixMicros(value)));
  return *this;
}
PgParams& PgParams::Null() {
  slots_.push_back({0, buffer_.size(), -1});
  return *this;
}
PgParams& PgParams::NullableInt(std::optional<std::int64_t> value) {
  if (value) return Int(*value);
  slots_.push_back({pg::kInt8, buffer_.size(), -1});
  return *this;
}
PgParams& PgParams::NullableText(std::optional<std::string_view> value) {
  if (value) return Text(*value);
  slots_.push_back({pg::kText, buffer_.size(), -1});
  return *this;
}
PgParams& PgParams::NullableId(const std::optional<Uuid>& value) {
  if (value) return Id(*value);
  slots_.push_back({pg::kUuid, buffer_.size(), -1});
  return *this;
}
PgParams& PgParams::NullableTime(std::optional<WallTime> value) {
  if (value) return Time(*value);
  slots_.push_back({pg::kTimestamptz, buffer_.size(), -1});
  return *this;
}

PgParams& PgParams::BeginArray(Element element, std::size_t count) {
  const auto e = static_cast<std::size_t>(element);
  slots_.push_back({kArrayTypes[e], buffer_.size(), 0});
  PutInt32(count == 0 ? 0 : 1);  // dimensions
  PutInt32(1);                   // may contain NULLs: the server does not insist that it does
  PutInt32(static_cast<std::int32_t>(kElementTypes[e]));
  if (count > 0) {
    PutInt32(static_cast<std::int32_t>(count));
    PutInt32(1);  // lower bound
  }
  return *this;
}
PgParams& PgParams::AddInt(std::int64_t value) {
  PutInt32(8);
  PutInt64(value);
  return *this;
}
PgParams& PgParams::AddBool(bool value) {
  PutInt32(1);
  buffer_ += value ? '\1' : '\0';
  return *this;
}
PgParams& PgParams::AddBytes(std::string_view value) {
  PutInt32(static_cast<std::int32_t>(value.size()));
  buffer_ += value;
  return *this;
}
PgParams& PgParams::AddTime(WallTime value) { return AddInt(pg::FromUnix(ToUnixMicros(value))); }
PgParams& PgParams::AddNull() {
  PutInt32(-1);
  return *this;
}
PgParams& PgParams::EndArray() {
  Slot& slot = slots_.back();
  slot.length = static_cast<std::int64_t>(buffer_.size() - slot.offset);
  return *this;
}

PgParams& PgParams::IntArray(std::span<const std::int64_t> values) {
  BeginArray(Element::kInt, values.size());
  for (const auto v : values) AddInt(v);
  return EndArray();
}
PgParams& PgParams::TextArray(std::span<const std::string_view> values) {
  BeginArray(Element::kText, values.size());
  for (const auto v : values) AddBytes(v);
  return EndArray();
}
PgParams& PgParams::BytesArray(std::span<const std::string_view> values) {
  BeginArray(Element::kBytes, values.size());
  for (const auto v : values) AddBytes(v);
  return EndArray();
}
PgParams& PgParams::IdArray(std::span<const Uuid> values) {
  BeginArray(Element::kId, values.size());
  for (const auto& v : values) AddBytes(v.AsBytes());
  return EndArray();
}

}  // namespace millrace
