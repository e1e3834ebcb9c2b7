// What a plain CSV file is made of: the forms of values that mean the same to everyone who reads them. Inside of plain_csv.cc,
// which proves a file, and of plain_rows.cc, which reads one that is proven: both take exactly these. Inline, because every
// byte of a file passes through here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "worker/stage/extract/sources.h"

namespace millrace::plain {

inline constexpr char kQuote = '"';

enum class Kind : std::uint8_t { kText, kInteger, kDecimal, kDouble, kBoolean, kDate, kTime, kTimestamp };

struct Field {
  Kind kind = Kind::kText;
  bool not_null = false;
  std::uint64_t max = 0, min = 0;   // integers: the largest value, and the magnitude of the smallest
  int whole_digits = 0, scale = 0;  // decimals
  bool exact_whole = false;         // doubles: whole numbers must stay exact
  bool fraction = true;             // timestamps: may have parts of a second
};

struct Form {
  std::vector<Field> fields;
  char delimiter = ',';
  bool crlf = false;  // as the header ends
};

// nullopt when the options are not among those that are understood here; for FormOf also the types.
std::optional<char> DelimiterOf(const std::string& path, FileFormat format, const std::map<std::string, std::string>& options);
std::optional<Form> FormOf(const std::string& path, const ReaderOptions& reader);

// An open regular file. Thread-safe.
class File {
 public:
  explicit File(const std::string& path);
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();
  std::int64_t size() const { return size_; }                          // -1: not a regular file, or unreadable
  bool Read(std::int64_t from, std::int64_t bytes, char* into) const;  // false: an error, or fewer bytes

 private:
  int fd_;
  std::int64_t size_ = -1;
};

// Where the first row begins; sets form->crlf. nullopt: no plain header.
std::optional<std::int64_t> ReadHeader(const File& file, Form* form);

// ---- fields: each takes the longest run that is one, and returns its end, or null; the value is in the last argument. Lines
// end in '\n', so that none of them needs to know where the bytes end.

inline bool Digit(char c) { return c >= '0' && c <= '9'; }

struct Number {
  bool negative = false;
  std::uint64_t digits = 0;  // all of them, without the point; wrong where they are more than 19
  std::ptrdiff_t count = 0;  // of digits
  int fraction = 0;          // how many are behind the point
};

inline const char* Digits(const char* at, int count, int* value) {
  *value = 0;
  for (int i = 0; i < count; ++i, ++at) {
    if (!Digit(*at)) return nullptr;
    *value = *value * 10 + (*at - '0');
  }
  return at;
}

inline const char* Run(const char* at, Number* number) {
  const char* const begin = at;
  std::uint64_t digits = number->digits;
  for (; Digit(*at); ++at) digits = digits * 10 + static_cast<std::uint64_t>(*at - '0');
  number->digits = digits;
  number->count += at - begin;
  return at;
}

inline const char* Integer(const char* at, const Field& field, Number* number) {
  constexpr std::ptrdiff_t kDigitsMax = 19;  // fit 64 bits whatever they are
  *number = {.negative = *at == '-'};
  at = Run(at + (number->negative ? 1 : 0), number);
  if (number->count == 0 || number->count > kDigitsMax || (number->negative && field.min == 0)) return nullptr;
  return number->digits <= (number->negative ? field.min : field.max) ? at : nullptr;
}

inline const char* Fraction(const char* at, std::ptrdiff_t digits_max, Number* number) {
  const std::ptrdiff_t before = number->count;
  at = Run(at, number);
  number->fraction = static_cast<int>(number->count - before);
  return number->fraction == 0 || number->count - before > digits_max ? nullptr : at;
}

inline const char* Decimal(const char* at, const Field& field, Number* number) {
  *number = {.negative = *at == '-'};
  if (number->negative) ++at;
  const char* whole = at;
  while (*at == '0') ++at;
  const char* significant = at;
  at = Run(at, number);
  if (at == whole || at - significant > field.whole_digits) return nullptr;
  return *at == '.' ? Fraction(at + 1, field.scale, number) : at;
}

inline const char* Double(const char* at, const Field& field, Number* number) {
  constexpr std::ptrdiff_t kDigitsMax = 15;  // exact in a double; twice as many are still in the range of a float
  *number = {.negative = *at == '-'};
  at = Run(at + (number->negative ? 1 : 0), number);
  if (number->count == 0 || number->count > (field.exact_whole ? kDigitsMax : 2 * kDigitsMax)) return nullptr;
  return *at == '.' ? Fraction(at + 1, 2 * kDigitsMax, number) : at;
}

inline const char* Boolean(const char* at, bool* value) {
  for (const std::string_view word : {"true", "false", "True", "False", "TRUE", "FALSE"}) {
    if (std::strncmp(at, word.data(), word.size()) != 0) continue;
    *value = word.size() == std::strlen("true");
    return at + word.size();
  }
  return nullptr;
}

struct Day {
  int year = 0, month = 0, day = 0;
};

inline const char* Date(const char* at, Day* value) {
  constexpr std::array<int, 13> kDays = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  if ((at = Digits(at, 4, &value->year)) == nullptr || *at != '-') return nullptr;
  if ((at = Digits(at + 1, 2, &value->month)) == nullptr || *at != '-') return nullptr;
  if ((at = Digits(at + 1, 2, &value->day)) == nullptr) return nullptr;
  const auto [year, month, day] = *value;
  if (year == 0 || month == 0 || month > 12 || day == 0) return nullptr;
  const bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  return day <= kDays[static_cast<std::size_t>(month)] + (month == 2 && leap ? 1 : 0) ? at : nullptr;
}

// Microseconds since midnight.
inline const char* Time(const char* at, bool may_have_fraction, std::int64_t* value) {
  constexpr std::ptrdiff_t kMicroDigits = 6;
  int hour = 0, minute = 0, second = 0;
  if ((at = Digits(at, 2, &hour)) == nullptr || *at != ':') return nullptr;
  if ((at = Digits(at + 1, 2, &minute)) == nullptr || *at != ':') return nullptr;
  if ((at = Digits(at + 1, 2, &second)) == nullptr || hour > 23 || minute > 59 || second > 59) return nullptr;
  *value = (hour * 3600 + minute * 60 + second) * std::int64_t{1'000'000};
  if (*at != '.') return at;
  Number number;
  at = Fraction(at + 1, kMicroDigits, &number);
  if (at == nullptr || !may_have_fraction) return nullptr;
  for (int i = number.fraction; i < kMicroDigits; ++i) number.digits *= 10;
  *value += static_cast<std::int64_t>(number.digits);
  return at;
}

bool IsUtf8(const char* at, const char* end);

// What ends a run of text: 1; what needs a closer look: 2.
using Classes = std::array<std::uint8_t, 256>;
Classes ClassesFor(char delimiter);

inline const char* Text(const char* at, const Classes& classes) {
  const char* begin = at;
  bool wide = false;
  while (true) {
    const std::uint8_t c = classes[static_cast<unsigned char>(*at)];
    if (c == 1) break;
    wide = wide || c == 2;
    ++at;
  }
  return wide && !IsUtf8(begin, at) ? nullptr : at;
}

// Takes lines apart. `Take(column, field, begin, classes)` gets what is between delimiters or quotes, and returns its end or
// null; `Null(column)` hears of nothing between delimiters.
class LineReader {
 public:
  explicit LineReader(const Form& form) : form_(form), outside_(ClassesFor(form.delimiter)), inside_(ClassesFor(kQuote)) {}

  // One line: past its end, or null.
  template <class Take, class Null>
  const char* Read(const char* at, const Take& take, const Null& null) const {
    const std::size_t count = form_.fields.size();
    for (std::size_t i = 0; i < count; ++i) {
      const Field& field = form_.fields[i];
      const char end = i + 1 < count ? form_.delimiter : form_.crlf ? '\r' : '\n';
      if (*at == end) {
        if (field.not_null) return nullptr;
        null(i);
      } else if (*at == kQuote) {
        if (at[1] == kQuote) return nullptr;  // an empty text or a null, or the beginning of a quote in a text
        at = take(i, field, at + 1, inside_);
        if (at == nullptr || *at != kQuote) return nullptr;
        ++at;
      } else {
        at = take(i, field, at, outside_);
        if (at == nullptr) return nullptr;
      }
      if (*at++ != end) return nullptr;
    }
    if (!form_.crlf) return at;
    return *at == '\n' ? at + 1 : nullptr;
  }

 private:
  const Form& form_;
  Classes outside_, inside_;
};

}  // namespace millrace::plain
