// Rows that this program makes itself, as a table of the engine (Connection::Offer): what the engine asks for, and where the
// values go. No value is copied on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace::duck {

// One column of the chunk that is being filled. Rows are filled in any order, each once: a value of the column's form (see Type
// in duckdb.h; decimals in their storage), a text, or null. Valid during one RowCursor::Fill.
class ColumnFill {
 public:
  // A text's first bytes are copied in one go: so many must be readable from its begin, whatever they are.
  static constexpr std::size_t kReadableBytes = 12;

  ColumnFill() = default;
  ColumnFill(void* vector, void* values) : vector_(vector), values_(values) {}

  template <class T>
  void Set(std::size_t row, T value) {
    static_cast<T*>(values_)[row] = value;
  }
  // REQUIRES: valid UTF-8, of less than 4 GiB; kReadableBytes are readable.
  void SetText(std::size_t row, std::string_view text) {
    if (text.size() > kInlineBytesMax) return SetLongText(row, text);
    const std::uint64_t size = text.size();
    std::uint64_t begin = 0;
    std::uint32_t rest = 0;
    std::memcpy(&begin, text.data(), sizeof begin);
    std::memcpy(&rest, text.data() + sizeof begin, sizeof rest);
    if (size < sizeof begin) {
      begin &= (std::uint64_t{1} << (8 * size)) - 1;
      rest = 0;
    } else if (size < kInlineBytesMax) {
      rest &= (std::uint32_t{1} << (8 * (size - sizeof begin))) - 1;
    }
    const auto length = static_cast<std::uint32_t>(size);
    char* entry = static_cast<char*>(values_) + row * kEntryBytes;
    std::memcpy(entry, &length, sizeof length);
    std::memcpy(entry + 4, &begin, sizeof begin);
    std::memcpy(entry + 12, &rest, sizeof rest);
  }
  void SetNull(std::size_t row) {
    if (validity_ == nullptr) MakeValidity();
    validity_[row / 64] &= ~(std::uint64_t{1} << (row % 64));
  }

 private:
  static constexpr std::size_t kEntryBytes = 16, kInlineBytesMax = 12;
  void SetLongText(std::size_t row, std::string_view text);
  void MakeValidity();

  void* vector_ = nullptr;
  void* values_ = nullptr;
  std::uint64_t* validity_ = nullptr;  // of a chunk without nulls there is none
};

// One thread's share of a reading. Used by one thread at a time.
class RowCursor {
 public:
  virtual ~RowCursor() = default;
  // Fills the first rows of `columns`, at most `rows_max`: how many; 0 at the end. kLimit: no memory left. Other errors: the
  // rows cannot be read.
  virtual Result<std::size_t> Fill(std::span<ColumnFill> columns, std::size_t rows_max) = 0;
};

// One reading of all rows; its cursors share them out.
class RowReading {
 public:
  virtual ~RowReading() = default;
  virtual int cursors_max() const = 0;  // more would find nothing to do
  // Thread-safe. Outlived by the reading.
  virtual std::unique_ptr<RowCursor> NewCursor() = 0;
};

// A table. Thread-safe: it may be read several times, also at once.
class RowSource {
 public:
  virtual ~RowSource() = default;
  // Types by their names: integers, float, double, decimal, boolean, date, time, timestamp, varchar.
  virtual const std::vector<ColumnSpec>& columns() const = 0;
  virtual std::int64_t rows() const = 0;  // an estimate
  // A reading of only these columns (by index, in this order; none: only the rows count).
  virtual Result<std::unique_ptr<RowReading>> Read(std::vector<std::size_t> columns) const = 0;
};

}  // namespace millrace::duck
