// The reading half of the codec (codec.cc): msgpack values straight from a frame, and records from values.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/base/limits.h"
#include "common/model/job_options.h"
#include "common/wire/codec.h"
#include "common/wire/messages.h"
#include "common/wire/text.h"

namespace millrace::wire::codec_detail {

// The head of one msgpack value, and of a string or blob its bytes. What is not used on the wire is kOther.
struct Value {
  enum class Type : std::uint8_t { kNil, kBool, kPositive, kNegative, kStr, kBin, kArray, kOther } type = Type::kOther;
  std::uint64_t number = 0;  // kBool, kPositive, kNegative (two's complement); kArray: items
  std::string_view bytes;
};

// Where the decoding of one body has come to. Values are read from the frame as the layout asks for them: no tree is built, and
// nothing is allocated for what a frame only claims to hold.
class Input {
 public:
  explicit Input(std::string_view body) : rest_(body) {}

  std::string error;       // the first complaint; empty: none
  bool malformed = false;  // it is about the body as a whole, not about a field of it
  std::size_t Left() const { return rest_.size(); }
  bool NilAhead() const { return !rest_.empty() && rest_.front() == '\xC0'; }

  // Jobs of one message mostly have the same options: the text before is not parsed again.
  std::string_view options_text;
  JobOptions options;

  // False: there is none, or one beyond all limits.
  bool Next(Value& out) {
    if (rest_.empty()) return Malformed("it ends too early");
    const auto head = static_cast<std::uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    if (head < 0x80) return Number(out, Value::Type::kPositive, head);
    if (head >= 0xE0) return Number(out, Value::Type::kNegative, static_cast<std::uint64_t>(static_cast<std::int8_t>(head)));
    if (head >= 0xA0 && head < 0xC0) return Sized(out, Value::Type::kStr, head & 0x1FU);
    if (head >= 0x90 && head < 0xA0) return Number(out, Value::Type::kArray, head & 0x0FU);
    std::uint64_t n = 0;
    switch (head) {
      case 0xC0: return Number(out, Value::Type::kNil, 0);
      case 0xC2:
      case 0xC3: return Number(out, Value::Type::kBool, head & 1U);
      case 0xC4: return Fixed<std::uint8_t>(n) && Sized(out, Value::Type::kBin, n);
      case 0xC5: return Fixed<std::uint16_t>(n) && Sized(out, Value::Type::kBin, n);
      case 0xC6: return Fixed<std::uint32_t>(n) && Sized(out, Value::Type::kBin, n);
      case 0xCC: return Fixed<std::uint8_t>(n) && Number(out, Value::Type::kPositive, n);
      case 0xCD: return Fixed<std::uint16_t>(n) && Number(out, Value::Type::kPositive, n);
      case 0xCE: return Fixed<std::uint32_t>(n) && Number(out, Value::Type::kPositive, n);
      case 0xCF: return Fixed<std::uint64_t>(n) && Number(out, Value::Type::kPositive, n);
      case 0xD0: return Fixed<std::uint8_t>(n) && Signed(out, static_cast<std::int8_t>(n));
      case 0xD1: return Fixed<std::uint16_t>(n) && Signed(out, static_cast<std::int16_t>(n));
      case 0xD2: return Fixed<std::uint32_t>(n) && Signed(out, static_cast<std::int32_t>(n));
      case 0xD3: return Fixed<std::uint64_t>(n) && Signed(out, static_cast<std::int64_t>(n));
      case 0xD9: return Fixed<std::uint8_t>(n) && Sized(out, Value::Type::kStr, n);
      case 0xDA: return Fixed<std::uint16_t>(n) && Sized(out, Value::Type::kStr, n);
      case 0xDB: return Fixed<std::uint32_t>(n) && Sized(out, Value::Type::kStr, n);
      case 0xDC: return Fixed<std::uint16_t>(n) && Array(out, n);
      case 0xDD: return Fixed<std::uint32_t>(n) && Array(out, n);
      case 0xC7:
      case 0xC8:
      case 0xC9:
      case 0xDE:
      case 0xDF: return Malformed("it holds a map or an extension");
      default: return Number(out, Value::Type::kOther, 0);  // the reader complains about its type: nothing goes on behind it
    }
  }

 private:
  bool Malformed(std::string_view why) {
    malformed = true;
    error = fmt::format("not a msgpack body within limits: {}", why);
    return false;
  }
  template <class T>
  bool Fixed(std::uint64_t& out) {  // big-endian
    T value = 0;
    if (rest_.size() < sizeof value) return Malformed("it ends too early");
    std::memcpy(&value, rest_.data(), sizeof value);
    if constexpr (std::endian::native == std::endian::little) value = std::byteswap(value);
    rest_.remove_prefix(sizeof value);
    out = value;
    return true;
  }
  static bool Number(Value& out, Value::Type type, std::uint64_t number) {
    out = {.type = type, .number = number, .bytes = {}};
    return true;
  }
  static bool Signed(Value& out, std::int64_t value) {
    return Number(out, value < 0 ? Value::Type::kNegative : Value::Type::kPositive, static_cast<std::uint64_t>(value));
  }
  bool Array(Value& out, std::uint64_t items) {
    if (items > kListItemsMax) return Malformed("an array is too long");
    return Number(out, Value::Type::kArray, items);
  }
  bool Sized(Value& out, Value::Type type, std::uint64_t size) {
    if (size > kPayloadBytesMax) return Malformed("a string or blob is too long");
    if (rest_.size() < size) return Malformed("it ends too early");
    out = {.type = type, .number = 0, .bytes = rest_.substr(0, size)};
    rest_.remove_prefix(size);
    return true;
  }

  std::string_view rest_;
};

// Stops at the first complaint, which names the field; from then on every call does nothing.
class Reader {
 public:
  static constexpr bool kReading = true;
  explicit Reader(Input& in) : in_(in) {}  // of one value

  void Record(std::uint32_t fields) {
    Value v;
    if (!Next("record", v)) return;
    if (v.type != Value::Type::kArray) return Complain("record", "is not an array");
    if (v.number != fields) return Complain("record", fmt::format("has {} fields, expected {}", v.number, fields));
    left_ = fields;
  }
  void Name(std::string_view field, std::string& out, std::size_t bytes_max) {
    std::string_view s;
    if (Str(field, s, bytes_max) && !(s.empty() && out.empty())) out.assign(s);
  }
  void Text(std::string_view field, std::string& out, std::size_t bytes_max) { Name(field, out, bytes_max); }
  void Bytes(std::string_view field, std::string& out, std::size_t bytes_max) {
    std::string_view bytes;
    if (!Bin(field, bytes)) return;
    if (bytes.size() > bytes_max) return Complain(field, fmt::format("has {} bytes, limit {}", bytes.size(), bytes_max));
    out.assign(bytes);
  }
  template <class Tag>
  void Id(std::string_view field, UuidId<Tag>& out) {
    Id(field, out.uuid);
  }
  void Id(std::string_view field, Uuid& out) {
    std::string_view bytes;
    if (!Bin(field, bytes)) return;
    if (bytes.size() != out.bytes.size()) return Complain(field, "is not 16 bytes");
    std::memcpy(out.bytes.data(), bytes.data(), out.bytes.size());
  }
  void Id(std::string_view field, std::optional<RunId>& out) {
    if (SkipNil(out)) return;
    Id(field, out.emplace());
  }
  void Flag(std::string_view field, bool& out) {
    Value v;
    if (!Next(field, v)) return;
    if (v.type != Value::Type::kBool) return Complain(field, "is not a boolean");
    out = v.number != 0;
  }
  template <class T>
  void Int(std::string_view field, T& out, T min = std::numeric_limits<T>::min(), T max = std::numeric_limits<T>::max()) {
    Value v;
    if (!Next(field, v)) return;
    const bool positive = v.type == Value::Type::kPositive;
    if (!positive && v.type != Value::Type::kNegative) return Complain(field, "is not an integer");
    const bool fits = positive ? std::in_range<T>(v.number) : std::in_range<T>(static_cast<std::int64_t>(v.number));
    const T value = static_cast<T>(v.number);
    if (!fits || value < min || value > max) return Complain(field, fmt::format("is not in [{}, {}]", min, max));
    out = value;
  }
  void Org(std::string_view field, OrgId& out) {
    std::int64_t value = 0;
    Int<std::int64_t>(field, value, 1);
    out = OrgId{value};
  }
  void Fence(std::string_view field, Token& out) {
    std::uint64_t value = 0;
    Int(field, value);
    out = Token{value};
  }
  template <class E>
  void Enum(std::string_view field, E& out) {
    std::uint8_t value = 0;
    Int(field, value);
    if (Failed()) return;
    if (millrace::Name(static_cast<E>(value)) == "unknown") return Complain(field, fmt::format("has no value {}", value));
    out = static_cast<E>(value);
  }
  // Everything but the fields that stand beside it in the record.
  void Settings(std::string_view field, QueueSettings& out) {
    std::string_view text;
    if (!Str(field, text, kQueueSettingsBytesMax)) return;
    auto settings = QueueSettingsFromJson(text);
    if (!settings) return Complain(field, settings.error().message);
    settings->org = out.org;
    settings->queue = std::move(out.queue);
    settings->revision = out.revision;
    out = std::move(*settings);
  }
  void Options(std::string_view field, JobOptions& out) {
    std::string_view text;
    if (!Str(field, text, kJobOptionsBytesMax) || text.empty()) return;
    if (text != in_.options_text) {
      auto options = JobOptionsFromJson(text);
      if (!options) return Complain(field, options.error().message);
      in_.options = std::move(*options);
      in_.options_text = text;
    }
    out = in_.options;
  }
  void Duration(std::string_view field, Millis& out) {
    std::int64_t ms = 0;
    Int<std::int64_t>(field, ms, 0, std::int64_t{1} << 40);  // 34 years; sums of them cannot overflow
    out = Millis{ms};
  }
  void Time(std::string_view field, WallTime& out) {
    std::int64_t us = 0;
    Int(field, us);
    out = FromUnixMicros(us);
  }
  void Time(std::string_view field, std::optional<WallTime>& out) {
    if (SkipNil(out)) return;
    Time(field, out.emplace());
  }
  template <class T, class EachFn>
  void List(std::string_view field, std::vector<T>& out, std::size_t items_max, EachFn each) {
    Value v;
    if (!Next(field, v)) return;
    if (v.type != Value::Type::kArray) return Complain(field, "is not an array");
    if (v.number > items_max) return Complain(field, fmt::format("has {} items, limit {}", v.number, items_max));
    out.reserve(std::min<std::size_t>(v.number, in_.Left()));  // each takes at least one byte of the frame
    for (std::uint64_t i = 0; i < v.number && !Failed(); ++i) {
      Reader item(in_);
      each(item, out.emplace_back());
      if (Failed()) Inside(fmt::format("{}[{}].", field, i));
    }
  }
  template <class T>
  void Nested(std::string_view field, T& record) {
    if (!Take(field)) return;
    Reader inner(in_);
    Layout(inner, record);
    if (Failed()) Inside(fmt::format("{}.", field));
  }

 private:
  bool Failed() const { return !in_.error.empty(); }
  bool Take(std::string_view field) {  // one of the values of this record
    if (Failed()) return false;
    if (left_ == 0) return Complain(field, "is missing"), false;
    --left_;
    return true;
  }
  bool Next(std::string_view field, Value& out) { return Take(field) && in_.Next(out); }
  template <class T>
  bool SkipNil(std::optional<T>& out) {
    if (Failed() || left_ == 0 || !in_.NilAhead()) return false;
    Value nil;
    Next("nil", nil);
    out.reset();
    return true;
  }
  bool Str(std::string_view field, std::string_view& out, std::size_t bytes_max) {
    Value v;
    if (!Next(field, v)) return false;
    if (v.type != Value::Type::kStr) return Complain(field, "is not a string"), false;
    if (v.bytes.size() > bytes_max)
      return Complain(field, fmt::format("has {} bytes, limit {}", v.bytes.size(), bytes_max)), false;
    if (!IsText(v.bytes)) return Complain(field, "is not UTF-8 without NUL"), false;
    out = v.bytes;
    return true;
  }
  bool Bin(std::string_view field, std::string_view& out) {
    Value v;
    if (!Next(field, v)) return false;
    if (v.type != Value::Type::kBin) return Complain(field, "is not binary"), false;
    out = v.bytes;
    return true;
  }
  void Complain(std::string_view field, std::string_view what) {
    if (!Failed()) in_.error = fmt::format("{} {}", field, what);
  }
  void Inside(std::string_view place) {
    if (!in_.malformed) in_.error.insert(0, place);
  }

  Input& in_;
  std::uint32_t left_ = 1;
};

}  // namespace millrace::wire::codec_detail
