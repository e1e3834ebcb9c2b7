#include "common/wire/codec.h"

#include <cstring>
#include <limits>
#include <msgpack.hpp>
#include <type_traits>
#include <utility>

#include "common/wire/text.h"

namespace millrace::wire {
namespace {

// Each record is listed once, in a Layout function below; Writer and Reader both walk that list, so they cannot disagree.

class Buffer {
 public:
  explicit Buffer(std::string& out) : out_(out) {}
  void write(const char* data, std::size_t size) { out_.append(data, size); }  // msgpack's name for it

 private:
  std::string& out_;
};
using Packer = msgpack::packer<Buffer>;

class Writer {
 public:
  static constexpr bool kReading = false;
  explicit Writer(Packer& packer) : packer_(packer) {}

  void Record(std::uint32_t fields) { packer_.pack_array(fields); }
  void Name(std::string_view, const std::string& s, std::size_t) { Str(s); }
  void Text(std::string_view, const std::string& s, std::size_t bytes_max) {  // for people: cut rather than refused
    if (s.size() <= bytes_max && IsText(s)) return Str(s);
    Str(CleanText(s, bytes_max));
  }
  void Bytes(std::string_view, const std::string& s, std::size_t) { Bin(s); }
  template <class T>
  void Id(std::string_view, const T& id) { Bin(id.AsBytes()); }
  void Flag(std::string_view, bool flag) { flag ? packer_.pack_true() : packer_.pack_false(); }
  template <class T>
  void Int(std::string_view, const T& value, T = std::numeric_limits<T>::min(), T = std::numeric_limits<T>::max()) {
    if constexpr (std::is_signed_v<T>) {
      packer_.pack_int64(value);
    } else {
      packer_.pack_uint64(value);
    }
  }
  void Org(std::string_view, OrgId org) { packer_.pack_int64(org.value()); }
  void Fence(std::string_view, Token token) { packer_.pack_uint64(token.value()); }
  template <class E>
  void Enum(std::string_view, E value) { packer_.pack_uint64(static_cast<std::uint64_t>(value)); }
  void Duration(std::string_view, Millis ms) { packer_.pack_int64(ms.count()); }
  void Time(std::string_view, WallTime t) { packer_.pack_int64(ToUnixMicros(t)); }
  void Time(std::string_view, const std::optional<WallTime>& t) { t ? Time("", *t) : Nil(); }
  void Id(std::string_view, const std::optional<RunId>& id) { id ? Bin(id->AsBytes()) : Nil(); }
  template <class T, class EachFn>
  void List(std::string_view, const std::vector<T>& items, std::size_t, EachFn each) {
    packer_.pack_array(static_cast<std::uint32_t>(items.size()));
    for (const T& item : items) each(*this, item);
  }

 private:
  void Nil() { packer_.pack_nil(); }
  void Str(std::string_view s) {
    packer_.pack_str(static_cast<std::uint32_t>(s.size()));
    packer_.pack_str_body(s.data(), static_cast<std::uint32_t>(s.size()));
  }
  void Bin(std::string_view s) {
    packer_.pack_bin(static_cast<std::uint32_t>(s.size()));
    packer_.pack_bin_body(s.data(), static_cast<std::uint32_t>(s.size()));
  }
  Packer& packer_;
};

// Stops at the first complaint, which names the field; from then on every call does nothing.
class Reader {
 public:
  static constexpr bool kReading = true;
  Reader(const msgpack::object& value, std::string& error) : next_(&value), end_(&value + 1), error_(error) {}

  void Record(std::uint32_t fields) {
    const msgpack::object* o = Next("record");
    if (!o) return;
    if (o->type != msgpack::type::ARRAY) return Complain("record", "is not an array");
    if (o->via.array.size != fields)
      return Complain("record", fmt::format("has {} fields, expected {}", o->via.array.size, fields));
    next_ = o->via.array.ptr;
    end_ = next_ + fields;
  }
  void Name(std::string_view field, std::string& out, std::size_t bytes_max) {
    const msgpack::object* o = Next(field);
    if (!o) return;
    if (o->type != msgpack::type::STR) return Complain(field, "is not a string");
    const std::string_view s{o->via.str.ptr, o->via.str.size};
    if (s.size() > bytes_max) return Complain(field, fmt::format("has {} bytes, limit {}", s.size(), bytes_max));
    if (!IsText(s)) return Complain(field, "is not UTF-8 without NUL");
    out.assign(s);
  }
  void Text(std::string_view field, std::string& out, std::size_t bytes_max) { Name(field, out, bytes_max); }
  void Bytes(std::string_view field, std::string& out, std::size_t bytes_max) {
    std::string_view bytes;
    if (!Bin(field, bytes)) return;
    if (bytes.size() > bytes_max) return Complain(field, fmt::format("has {} bytes, limit {}", bytes.size(), bytes_max));
    out.assign(bytes);
  }
  template <class Tag>
  void Id(std::string_view field, UuidId<Tag>& out) { Id(field, out.uuid); }
  void Id(std::string_view field, Uuid& out) {
    std::string_view bytes;
    if (!Bin(field, bytes)) return;
    if (bytes.size() != out.bytes.size()) return Complain(field, "is not 16 bytes");
    std::memcpy(out.bytes.data(), bytes.data(), bytes.size());
  }
  void Id(std::string_view field, std::optional<RunId>& out) {
    if (SkipNil(out)) return;
    Id(field, out.emplace());
  }
  void Flag(std::string_view field, bool& out) {
    const msgpack::object* o = Next(field);
    if (!o) return;
    if (o->type != msgpack::type::BOOLEAN) return Complain(field, "is not a boolean");
    out = o->via.boolean;
  }
  template <class T>
  void Int(std::string_view field, T& out, T min = std::numeric_limits<T>::min(), T max = std::numeric_limits<T>::max()) {
    const msgpack::object* o = Next(field);
    if (!o) return;
    const bool positive = o->type == msgpack::type::POSITIVE_INTEGER;
    if (!positive && o->type != msgpack::type::NEGATIVE_INTEGER) return Complain(field, "is not an integer");
    const bool fits = positive ? std::in_range<T>(o->via.u64) : std::in_range<T>(o->via.i64);
    const T value = fits ? (positive ? static_cast<T>(o->via.u64) : static_cast<T>(o->via.i64)) : T{};
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
    if (!error_.empty()) return;
    if (millrace::Name(static_cast<E>(value)) == "unknown") return Complain(field, fmt::format("has no value {}", value));
    out = static_cast<E>(value);
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
    const msgpack::object* o = Next(field);
    if (!o) return;
    if (o->type != msgpack::type::ARRAY) return Complain(field, "is not an array");
    const auto& array = o->via.array;
    if (array.size > items_max) return Complain(field, fmt::format("has {} items, limit {}", array.size, items_max));
    out.reserve(array.size);  // the items are there: each took at least one byte of the frame
    for (std::uint32_t i = 0; i < array.size && error_.empty(); ++i) {
      Reader item(array.ptr[i], error_);
      each(item, out.emplace_back());
      if (!error_.empty()) error_.insert(0, fmt::format("{}[{}].", field, i));
    }
  }

 private:
  const msgpack::object* Next(std::string_view field) {
    if (!error_.empty()) return nullptr;
    if (next_ == end_) {
      Complain(field, "is missing");
      return nullptr;
    }
    return next_++;
  }
  template <class T>
  bool SkipNil(std::optional<T>& out) {
    if (!error_.empty() || next_ == end_ || next_->type != msgpack::type::NIL) return false;
    ++next_;
    out.reset();
    return true;
  }
  bool Bin(std::string_view field, std::string_view& out) {
    const msgpack::object* o = Next(field);
    if (!o) return false;
    if (o->type != msgpack::type::BIN) return Complain(field, "is not binary"), false;
    out = {o->via.bin.ptr, o->via.bin.size};
    return true;
  }
  void Complain(std::string_view field, std::string_view what) {
    if (error_.empty()) error_ = fmt::format("{} {}", field, what);
  }

  const msgpack::object* next_;
  const msgpack::object* end_;
  std::string& error_;
};

constexpr auto kEach = [](auto& a, auto& item) { Layout(a, item); };
constexpr auto kEachId = [](auto& a, auto& item) { a.Id("id", item); };
constexpr auto kEachName = [](auto& a, auto& item) { a.Name("name", item, kNameBytesMax); };
constexpr auto kEachPath = [](auto& a, auto& item) { a.Name("path", item, kPathBytesMax); };

// `T` is const for the Writer. Order and types are the protocol: see ops/docs/wire.md before touching anything here.
template <class T, class U>
concept Of = std::same_as<std::remove_const_t<T>, U>;

template <class A, Of<RetryPolicy> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Int("max_attempts", t.max_attempts, 1, kMaxAttemptsMax);
  a.Duration("backoff_base_ms", t.backoff_base);
  a.Duration("backoff_cap_ms", t.backoff_cap);
}

// A record inside a record: one item of a list of its own would cost a byte more, so it is written in place.
template <class A, class T>
void Nested(A& a, std::string_view field, T& t);

template <class A, Of<JobSpec> T>
void Layout(A& a, T& t) {
  a.Record(18);
  a.Id("id", t.id);
  a.Org("org", t.org);
  a.Id("run", t.run);
  a.Name("stage", t.stage, kNameBytesMax);
  a.Name("kind", t.kind, kNameBytesMax);
  a.Name("queue", t.queue, kNameBytesMax);
  a.Int("priority", t.priority, 0, kPriorityLevels - 1);
  a.Bytes("payload", t.payload, kPayloadBytesMax);
  a.List("depends_on", t.depends_on, kListItemsMax, kEachId);
  a.Name("effect", t.effect, kEffectBytesMax);
  a.Name("root", t.root, kPathBytesMax);
  a.Int("max_attempts", t.retry.max_attempts, 1, kMaxAttemptsMax);
  a.Duration("backoff_base_ms", t.retry.backoff_base);
  a.Duration("backoff_cap_ms", t.retry.backoff_cap);
  a.Duration("timeout_ms", t.timeout);
  a.Time("run_at_us", t.run_at);
  a.Time("submitted_at_us", t.submitted_at);
}
