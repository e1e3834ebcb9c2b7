#include "worker/stage/extract/plain_rows.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "common/drivers/duckdb.h"
#include "worker/stage/extract/packed.h"
#include "worker/stage/extract/plain_fields.h"

namespace millrace {
namespace {

using plain::Classes;
using plain::Field;
using plain::File;
using plain::Form;
using plain::Kind;
using plain::LineReader;
using plain::Number;

constexpr std::int64_t kPieceBytes = 8'000'000;  // as the engine, so that files which it reads in order are read in order
constexpr std::size_t kChunkBytes = 1 << 20;     // of a chunk's rows: their texts are copied
constexpr std::int64_t kBlockBytes = 256 << 10;  // in the processor's cache when it is looked at
constexpr std::int64_t kRestBytes = 16 << 10;    // read at once of what a piece's last line needs beyond its end
constexpr std::size_t kSlackBytes = duck::ColumnFill::kReadableBytes;

__extension__ using Wide = unsigned __int128;

constexpr std::array<std::uint64_t, 20> PowersOfTen() {
  std::array<std::uint64_t, 20> powers{1};
  for (std::size_t i = 1; i < powers.size(); ++i) powers[i] = powers[i - 1] * 10;
  return powers;
}
constexpr std::array<std::uint64_t, 20> kPowers = PowersOfTen();

enum class Store : std::uint8_t { kSkip, kText, kInteger, kDecimal, kFloat, kDouble, kBoolean, kDate, kTime, kTimestamp };

// What becomes of one field of each line.
struct Step {
  Store store = Store::kSkip;
  int bytes = 0;       // integers and decimals
  std::size_t to = 0;  // which of the columns that are filled
};

int IntegerBytes(std::string_view type) {
  if (type.ends_with("hugeint")) return 16;
  if (type.ends_with("bigint")) return 8;
  if (type.ends_with("tinyint")) return 1;
  return type.ends_with("smallint") ? 2 : 4;
}

int DecimalBytes(const Field& field) {
  const int width = field.whole_digits + field.scale;
  return width <= 4 ? 2 : width <= 9 ? 4 : width <= 18 ? 8 : 16;
}

Step StepFor(const Field& field, std::string_view type, std::size_t to) {
  switch (field.kind) {
    case Kind::kText: return {Store::kText, 0, to};
    case Kind::kInteger: return {Store::kInteger, IntegerBytes(type), to};
    case Kind::kDecimal: return {Store::kDecimal, DecimalBytes(field), to};
    case Kind::kDouble: return {type == "float" ? Store::kFloat : Store::kDouble, 0, to};
    case Kind::kBoolean: return {Store::kBoolean, 0, to};
    case Kind::kDate: return {Store::kDate, 0, to};
    case Kind::kTime: return {Store::kTime, 0, to};
    case Kind::kTimestamp: return {Store::kTimestamp, 0, to};
  }
  return {};
}

// ---- values

duck::Int128 Signed(Wide magnitude, bool negative) {
  const Wide value = negative ? Wide{0} - magnitude : magnitude;
  return {static_cast<std::uint64_t>(value), static_cast<std::int64_t>(static_cast<std::uint64_t>(value >> 64))};
}

void SetInteger(duck::ColumnFill& column, std::size_t row, int bytes, std::uint64_t magnitude, bool negative) {
  const std::uint64_t value = negative ? std::uint64_t{0} - magnitude : magnitude;
  switch (bytes) {
    case 1: return column.Set(row, static_cast<std::uint8_t>(value));
    case 2: return column.Set(row, static_cast<std::uint16_t>(value));
    case 4: return column.Set(row, static_cast<std::uint32_t>(value));
    case 8: return column.Set(row, value);
    default: return column.Set(row, Signed(magnitude, negative));
  }
}

void SetDecimal(duck::ColumnFill& column, std::size_t row, int bytes, const Field& field, const Number& number,
                std::string_view text) {
  const auto missing = static_cast<std::size_t>(field.scale - number.fraction);
  if (bytes <= 8) return SetInteger(column, row, bytes, number.digits * kPowers[missing], number.negative);
  Wide magnitude = 0;
  for (const char c : text)
    if (plain::Digit(c)) magnitude = magnitude * 10 + static_cast<unsigned>(c - '0');
  for (std::size_t i = 0; i < missing; ++i) magnitude *= 10;
  column.Set(row, Signed(magnitude, number.negative));
}

// The nearest one, as the engine's.
template <class T>
T Nearest(const Number& number, std::string_view text) {
  // Both sides of the division are exact, so that it rounds but once.
  constexpr std::uint64_t kExactMax = std::uint64_t{1} << std::numeric_limits<T>::digits;
  constexpr int kExactPower = std::numeric_limits<T>::digits > 24 ? 19 : 10, kDigitsMax = 19;
  if (number.count <= kDigitsMax && number.digits <= kExactMax && number.fraction <= kExactPower) {
    const T value = static_cast<T>(number.digits) / static_cast<T>(kPowers[static_cast<std::size_t>(number.fraction)]);
    return number.negative ? -value : value;
  }
  T value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// Days since 1970-01-01, by counting years from March on.
std::int32_t DaysOf(const plain::Day& day) {
  constexpr int kDaysOf400Years = 146'097, kDaysTo1970 = 719'468;
  const int year = day.month <= 2 ? day.year - 1 : day.year;
  const int era = year / 400, year_of_era = year % 400;
  const int day_of_year = (153 * (day.month > 2 ? day.month - 3 : day.month + 9) + 2) / 5 + day.day - 1;
  return era * kDaysOf400Years + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - kDaysTo1970;
}

// Reads the field that begins at `at`: its end, or null.
const char* Take(const char* at, const Field& field, const Classes& classes, const Step& step, duck::ColumnFill* columns,
                 std::size_t row) {
  constexpr std::int64_t kMicrosOfDay = 86'400'000'000;
  const char* const begin = at;
  const auto text = [&] { return std::string_view(begin, static_cast<std::size_t>(at - begin)); };
  Number number;
  plain::Day day;
  std::int64_t time = 0;
  bool truth = false;
  switch (step.store) {
    case Store::kSkip:
      while (classes[static_cast<unsigned char>(*at)] != 1) ++at;
      return at;
    case Store::kText:
      if ((at = plain::Text(at, classes)) != nullptr) columns[step.to].SetText(row, text());
      return at;
    case Store::kInteger:
      if ((at = plain::Integer(at, field, &number)) != nullptr)
        SetInteger(columns[step.to], row, step.bytes, number.digits, number.negative);
      return at;
    case Store::kDecimal:
      if ((at = plain::Decimal(at, field, &number)) != nullptr)
        SetDecimal(columns[step.to], row, step.bytes, field, number, text());
      return at;
    case Store::kFloat:
      if ((at = plain::Double(at, field, &number)) != nullptr) columns[step.to].Set(row, Nearest<float>(number, text()));
      return at;
    case Store::kDouble:
      if ((at = plain::Double(at, field, &number)) != nullptr) columns[step.to].Set(row, Nearest<double>(number, text()));
      return at;
    case Store::kBoolean:
      if ((at = plain::Boolean(at, &truth)) != nullptr) columns[step.to].Set(row, truth);
      return at;
    case Store::kDate:
      if ((at = plain::Date(at, &day)) != nullptr) columns[step.to].Set(row, DaysOf(day));
      return at;
    case Store::kTime:
      if ((at = plain::Time(at, true, &time)) != nullptr) columns[step.to].Set(row, time);
      return at;
    case Store::kTimestamp:
      at = plain::Date(at, &day);
      if (at == nullptr || *at != ' ') return nullptr;
      if ((at = plain::Time(at + 1, field.fraction, &time)) != nullptr)
        columns[step.to].Set(row, DaysOf(day) * kMicrosOfDay + time);
      return at;
  }
  return nullptr;
}

// ---- files

struct Part {
  std::string path;
  std::int64_t size = 0;
  Form form;
};

// The lines of a file that begin in [from, to). The byte before `from` is a line's last, or inside of a line.
struct Piece {
  std::size_t part = 0;
  std::int64_t from = 0, to = 0;
};

Error Changed(const std::string& path) {
  return {ErrorCode::kConflict, std::filesystem::path(path).filename().string() + ": is not what was extracted any more"};
}
Error Unreadable(const std::string& path) {
  return {ErrorCode::kUnavailable, std::filesystem::path(path).filename().string() + ": cannot be read"};
}

struct Reading final : duck::RowReading {
  std::vector<Part> parts;
  std::vector<Piece> pieces;
  std::vector<Step> steps;
  mutable std::atomic<std::size_t> next = 0;

  int cursors_max() const override { return static_cast<int>(std::min<std::size_t>(pieces.size(), INT16_MAX)); }
  std::unique_ptr<duck::RowCursor> NewCursor() override;
};

class Cursor final : public duck::RowCursor {
 public:
  explicit Cursor(Reading* reading) : reading_(*reading) {}

  Result<std::size_t> Fill(std::span<duck::ColumnFill> columns, std::size_t rows_max) override {
    std::size_t row = 0, bytes = 0;
    while (row < rows_max && bytes < kChunkBytes) {
      if (at_ == lines_end_) {
        MILLRACE_TRY_ASSIGN(const bool more, NextLines());
        if (!more) break;
      }
      const char* next = lines_->Read(
          at_,
          [&](std::size_t i, const Field& field, const char* from, const Classes& classes) {
            return Take(from, field, classes, reading_.steps[i], columns.data(), row);
          },
          [&](std::size_t i) {
            if (const Step& step = reading_.steps[i]; step.store != Store::kSkip) columns[step.to].SetNull(row);
          });
      if (next == nullptr) return std::unexpected(Changed(part_->path));
      bytes += static_cast<std::size_t>(next - at_);
      at_ = next;
      ++row;
    }
    return row;
  }

 private:
  // So that whole lines of a piece lie in [at_, lines_end_). False: there are no more.
  Result<bool> NextLines() {
    while (true) {
      if (whole_piece_) {
        const std::size_t index = reading_.next++;
        if (index >= reading_.pieces.size()) return false;
        MILLRACE_TRY(Begin(reading_.pieces[index]));
      }
      MILLRACE_TRY(ReadOn());
      if (at_ != lines_end_) return true;
    }
  }

  Result<void> Begin(const Piece& piece) {
    if (part_ == nullptr || part_ != &reading_.parts[piece.part]) {
      part_ = &reading_.parts[piece.part];
      file_ = std::make_unique<File>(part_->path);
      if (file_->size() < 0) return std::unexpected(Unreadable(part_->path));
      if (file_->size() != part_->size) return std::unexpected(Changed(part_->path));
      lines_ = std::make_unique<LineReader>(part_->form);
    }
    position_ = piece.from - 1;
    to_ = piece.to;
    filled_ = 0;
    whole_piece_ = false;
    inside_line_ = true;
    return {};
  }

  // Reads the piece's next block behind what is left of a line.
  Result<void> ReadOn() {
    const std::size_t kept = filled_ == 0 ? 0 : filled_ - static_cast<std::size_t>(lines_end_ - bytes_.data());
    if (kept > 0) std::memmove(bytes_.data(), lines_end_, kept);
    filled_ = kept;
    const bool last_line = position_ >= to_;  // which began before the piece's end
    const std::int64_t wanted =
        last_line ? std::min(kRestBytes, part_->size - position_) : std::min(kBlockBytes, to_ - position_);
    if (kept > kRecordBytesMax) return std::unexpected(Changed(part_->path));
    bytes_.resize(std::max(bytes_.size(), kept + static_cast<std::size_t>(std::max(wanted, kBlockBytes)) + kSlackBytes));
    if (!file_->Read(position_, wanted, bytes_.data() + kept)) return std::unexpected(Unreadable(part_->path));
    position_ += wanted;
    filled_ += static_cast<std::size_t>(wanted);
    if (wanted == 0) {  // the file's last line need not end
      const std::string_view end = part_->form.crlf ? "\r\n" : "\n";
      std::memcpy(bytes_.data() + filled_, end.data(), end.size());
      filled_ += end.size();
    }
    FindLines(kept, last_line);
    return {};
  }

  void FindLines(std::size_t searched, bool last_line) {
    char* const begin = bytes_.data();
    const std::size_t fresh = filled_ - searched;
    const void* found = last_line ? std::memchr(begin + searched, '\n', fresh) : ::memrchr(begin + searched, '\n', fresh);
    at_ = lines_end_ = begin;
    if (found == nullptr) return;
    lines_end_ = static_cast<const char*>(found) + 1;
    if (inside_line_) {  // the line before the piece's first
      at_ = static_cast<const char*>(std::memchr(begin, '\n', filled_)) + 1;
      inside_line_ = false;
    }
    // The byte before `to_` ends a line, or the line that it is in is completed.
    whole_piece_ = last_line || (position_ >= to_ && lines_end_ == begin + filled_);
  }

  Reading& reading_;
  const Part* part_ = nullptr;
  std::unique_ptr<File> file_;
  std::unique_ptr<LineReader> lines_;
  std::int64_t position_ = 0, to_ = 0;  // of the next byte to be read; where the piece ends
  bool whole_piece_ = true;             // all of its lines are in [at_, lines_end_)
  bool inside_line_ = false;            // of another piece
  std::vector<char> bytes_;
  std::size_t filled_ = 0;
  const char* at_ = nullptr;
  const char* lines_end_ = nullptr;
};

std::unique_ptr<duck::RowCursor> Reading::NewCursor() { return std::make_unique<Cursor>(this); }

class Source final : public duck::RowSource {
 public:
  Source(std::vector<std::string> paths, Form form, std::vector<ColumnSpec> columns, std::int64_t rows)
      : paths_(std::move(paths)), form_(std::move(form)), columns_(std::move(columns)), rows_(rows) {}

  const std::vector<ColumnSpec>& columns() const override { return columns_; }
  std::int64_t rows() const override { return rows_; }

  Result<std::unique_ptr<duck::RowReading>> Read(std::vector<std::size_t> columns) const override {
    auto reading = std::make_unique<Reading>();
    reading->steps.resize(columns_.size());
    for (std::size_t to = 0; to < columns.size(); ++to) {
      const std::size_t from = columns[to];
      reading->steps[from] = StepFor(form_.fields[from], columns_[from].type, to);
    }
    reading->parts.reserve(paths_.size());
    for (const std::string& path : paths_) {
      const File file(path);
      if (file.size() < 0) return std::unexpected(Unreadable(path));
      Part part{.path = path, .size = file.size(), .form = form_};
      const auto begin = plain::ReadHeader(file, &part.form);
      if (!begin) return std::unexpected(Changed(path));
      for (std::int64_t from = *begin; from < part.size; from += kPieceBytes)
        reading->pieces.push_back({reading->parts.size(), from, std::min(from + kPieceBytes, part.size)});
      reading->parts.push_back(std::move(part));
    }
    return reading;
  }

 private:
  std::vector<std::string> paths_;
  Form form_;
  std::vector<ColumnSpec> columns_;
  std::int64_t rows_;
};

}  // namespace

std::shared_ptr<const duck::RowSource> PlainRows(std::vector<std::string> paths, const ReaderOptions& reader,
                                                 std::int64_t rows) {
  if (paths.empty()) return nullptr;
  for (const auto& path : paths)
    if (!plain::FormOf(path, reader)) return nullptr;
  return std::make_shared<Source>(paths, *plain::FormOf(paths.front(), reader), reader.columns, rows);
}

}  // namespace millrace
