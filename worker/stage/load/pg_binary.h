// PostgreSQL's binary COPY format, value by value, into one growing buffer that is flushed at about 1 MiB.
// No allocation per value. Knows nothing of DuckDB or libpq.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>

namespace millrace::load {

__extension__ typedef __int128 Int128;
__extension__ typedef unsigned __int128 Uint128;

inline constexpr std::size_t kCopyFlushBytes = 1u << 20;

// Not thread-safe. The caller writes, for each row, BeginRow and then exactly that many values.
class PgBinaryBuffer {
 public:
  PgBinaryBuffer() { Grow(kCopyFlushBytes + (64u << 10)); }

  std::string_view view() const { return {begin_.get(), size_}; }
  std::size_t size() const { return size_; }
  void Clear() { size_ = 0; }

  void Header();   // once, at the start of the stream
  void Trailer();  // once, at its end

  void BeginRow(std::int16_t columns) {
    Reserve(2);
    Put16(static_cast<std::uint16_t>(columns));
  }
  void Null() {
    Reserve(4);
    Put32(0xffffffffu);
  }
  void Bool(bool v) {
    Reserve(5);
    Put32(1);
    begin_[size_++] = v ? '\1' : '\0';
  }
  void Int2(std::int16_t v) {
    Reserve(6);
    Put32(2);
    Put16(static_cast<std::uint16_t>(v));
  }
  void Int4(std::int32_t v) {
    Reserve(8);
    Put32(4);
    Put32(static_cast<std::uint32_t>(v));
  }
  void Int8(std::int64_t v) {
    Reserve(12);
    Put32(8);
    Put64(static_cast<std::uint64_t>(v));
  }
  void Float4(float v) {
    Reserve(8);
    Put32(4);
    Put32(std::bit_cast<std::uint32_t>(v));
  }
  void Float8(double v) {
    Reserve(12);
    Put32(8);
    Put64(std::bit_cast<std::uint64_t>(v));
  }
  // `unscaled` / 10^scale, |unscaled| < 10^39, 0 <= scale <= 38.
  void Numeric(Int128 unscaled, int scale);
  // Text, bytea, and the 16 bytes of a uuid. REQUIRES: fewer than 1 GiB, and no zero byte in text (the caller checks).
  void Bytes(std::string_view v) {
    Reserve(4 + v.size());
    Put32(static_cast<std::uint32_t>(v.size()));
    std::memcpy(begin_.get() + size_, v.data(), v.size());
    size_ += v.size();
  }
  void Jsonb(std::string_view v) {
    Reserve(5 + v.size());
    Put32(static_cast<std::uint32_t>(v.size() + 1));
    begin_[size_++] = '\1';
    std::memcpy(begin_.get() + size_, v.data(), v.size());
    size_ += v.size();
  }
  // Days and microseconds since 1970-01-01. REQUIRES: IsPgDate, IsPgTimestamp.
  void Date(std::int32_t unix_days) { Int4(unix_days - kPgEpochDays); }
  void Timestamp(std::int64_t unix_micros) { Int8(unix_micros - kPgEpochMicros); }
  void Time(std::int64_t micros) { Int8(micros); }
  void Interval(std::int32_t months, std::int32_t days, std::int64_t micros) {
    Reserve(20);
    Put32(16);
    Put64(static_cast<std::uint64_t>(micros));
    Put32(static_cast<std::uint32_t>(days));
    Put32(static_cast<std::uint32_t>(months));
  }

  static constexpr std::int32_t kPgEpochDays = 10957;  // 2000-01-01
  static constexpr std::int64_t kPgEpochMicros = 946'684'800'000'000;
  // In PostgreSQL's range (4713 BC to 5874897 and 294276 AD), infinities excluded.
  static constexpr bool IsPgDate(std::int32_t unix_days) {
    return unix_days >= -2'451'545 + kPgEpochDays && unix_days < 2'145'031'949 + kPgEpochDays;
  }
  static constexpr bool IsPgTimestamp(std::int64_t unix_micros) {
    return unix_micros >= -211'813'488'000'000'000 + kPgEpochMicros && unix_micros < 9'223'371'331'200'000'000;
  }

 private:
  void Reserve(std::size_t bytes) {
    if (capacity_ - size_ < bytes) [[unlikely]]
      Grow(bytes);
  }
  void Grow(std::size_t bytes);
  void Put16(std::uint16_t v) {
    v = std::byteswap(v);
    std::memcpy(begin_.get() + size_, &v, 2);
    size_ += 2;
  }
  void Put32(std::uint32_t v) {
    v = std::byteswap(v);
    std::memcpy(begin_.get() + size_, &v, 4);
    size_ += 4;
  }
  void Put64(std::uint64_t v) {
    v = std::byteswap(v);
    std::memcpy(begin_.get() + size_, &v, 8);
    size_ += 8;
  }

  std::unique_ptr<char[]> begin_;
  std::size_t size_ = 0, capacity_ = 0;
};
static_assert(std::endian::native == std::endian::little, "Put* swap bytes");

}  // namespace millrace::load
