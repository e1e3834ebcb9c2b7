#include "common/wire/codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstring>
#include <limits>
#include <msgpack.hpp>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "common/model/job_options.h"
#include "common/wire/text.h"

namespace millrace::wire {
namespace {

// Each record is listed once, in a Layout function below; Writer and Reader both walk that list, so they cannot disagree.

// Collects what msgpack hands over a few bytes at a time; all of it is in `out` when this ends.
class Buffer {
 public:
  explicit Buffer(std::string& out) : out_(out) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { Spill(); }
  // msgpack's name for it. Inlined, because its size is a constant nearly everywhere.
  [[gnu::always_inline]] void write(const char* data, std::size_t size) {
    if (size > chunk_.size() - used_) return WriteThrough(data, size);
    std::memcpy(chunk_.data() + used_, data, size);
    used_ += size;
  }

 private:
  void Spill() { out_.append(chunk_.data(), std::exchange(used_, 0)); }
  void WriteThrough(const char* data, std::size_t size) {
    Spill();
    out_.append(data, size);
  }
  std::string& out_;
  std::array<char, 1024> chunk_;
  std::size_t used_ = 0;
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
  void Id(std::string_view, const T& id) {
    Bin(id.AsBytes());
  }
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
  void Enum(std::string_view, E value) {
    packer_.pack_uint64(static_cast<std::uint64_t>(value));
  }
  void Options(std::string_view, const JobOptions& options) {  // the job before mostly had the same
    if (last_options_ == nullptr || !(*last_options_ == options)) options_text_ = ToJson(options);
    last_options_ = &options;
    Str(options_text_);
  }
  void Settings(std::string_view, const QueueSettings& settings) { Str(ToJson(settings)); }
  void Duration(std::string_view, Millis ms) { packer_.pack_int64(ms.count()); }
  void Time(std::string_view, WallTime t) { packer_.pack_int64(ToUnixMicros(t)); }
  void Time(std::string_view, const std::optional<WallTime>& t) { t ? Time("", *t) : Nil(); }
  void Id(std::string_view, const std::optional<RunId>& id) { id ? Bin(id->AsBytes()) : Nil(); }
  template <class T, class EachFn>
  void List(std::string_view, const std::vector<T>& items, std::size_t, EachFn each) {
    packer_.pack_array(static_cast<std::uint32_t>(items.size()));
    for (const T& item : items) each(*this, item);
  }
  template <class T>
  void Nested(std::string_view, const T& record) {
    Layout(*this, record);
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
  const JobOptions* last_options_ = nullptr;
  std::string options_text_;
};

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

constexpr auto kEach = [](auto& a, auto& item) { Layout(a, item); };
constexpr auto kEachId = [](auto& a, auto& item) { a.Id("id", item); };
constexpr auto kEachName = [](auto& a, auto& item) { a.Name("name", item, kNameBytesMax); };
constexpr auto kEachPath = [](auto& a, auto& item) { a.Name("path", item, kPathBytesMax); };

// `T` is const for the Writer. Order and types are the protocol: see ops/docs/wire.md before touching anything here.
template <class T, class U>
concept Of = std::same_as<std::remove_const_t<T>, U>;

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
  a.Options("options", t.options);
}

template <class A, Of<RunSpec> T>
void Layout(A& a, T& t) {
  a.Record(10);
  a.Id("id", t.id);
  a.Org("org", t.org);
  a.Name("pipeline", t.pipeline, kNameBytesMax);
  a.Int("version", t.version);
  a.Name("schedule", t.schedule, kNameBytesMax);
  a.Time("slot_us", t.slot);
  a.Int("generation", t.generation);
  a.Name("overlap", t.overlap, kNameBytesMax);
  a.Name("params", t.params, kPayloadBytesMax);
  a.Time("created_at_us", t.created_at);
}

template <class A, Of<AttemptReport> T>
void Layout(A& a, T& t) {
  a.Record(13);
  a.Id("job", t.job);
  a.Fence("token", t.token);
  a.Enum("end", t.end);
  a.Flag("retryable", t.retryable);
  a.Name("error_class", t.error_class, kNameBytesMax);
  a.Text("error", t.error, kErrorMessageBytesMax);
  a.Name("result", t.result, kResultBytesMax);
  a.Int("exit_code", t.exit_code);
  a.Int("signal", t.signal);
  a.Text("log_tail", t.log_tail, kLogTailBytesMax);
  a.Name("worker", t.worker, kNameBytesMax);
  a.Time("started_at_us", t.started_at);
  a.Time("finished_at_us", t.finished_at);
}

template <class A, Of<Hello::Held> T>
void Layout(A& a, T& t) {
  a.Record(2);
  a.Id("job", t.job);
  a.Fence("token", t.token);
}

template <class A, Of<Hello> T>
void Layout(A& a, T& t) {
  a.Record(8);
  a.Id("worker", t.worker);
  a.Name("name", t.name, kNameBytesMax);
  a.List("queues", t.queues, kNamesMax, kEachName);
  a.List("kinds", t.kinds, kNamesMax, kEachName);
  a.List("roots", t.roots, kNamesMax, kEachPath);
  a.Int("concurrency", t.concurrency);
  a.Int("credit_limit", t.credit_limit);
  a.List("held", t.held, kHeldMax, kEach);
}

template <class A, Of<Beat::Progress> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Id("job", t.job);
  a.Int("rows", t.rows);
  a.Int("bytes", t.bytes);
}

template <class A, Of<Beat> T>
void Layout(A& a, T& t) {
  a.Record(5);
  a.Id("worker", t.worker);
  a.Int("credit_limit", t.credit_limit);
  a.List("held", t.held, kHeldMax, kEach);
  a.List("progress", t.progress, kHeldMax, kEach);
  a.Flag("draining", t.draining);
}

template <class A, Of<Ended> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Id("worker", t.worker);
  a.Int("credit_limit", t.credit_limit);
  a.List("reports", t.reports, kBatchJobsMax, kEach);
}

template <class A, Of<Goodbye> T>
void Layout(A& a, T& t) {
  a.Record(1);
  a.Id("worker", t.worker);
}

template <class A, Of<Orphans> T>
void Layout(A& a, T& t) {
  a.Record(2);
  a.Id("worker", t.worker);
  a.List("items", t.items, kHeldMax, kEach);
}

template <class A, Of<Welcome> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Name("broker", t.broker, kNameBytesMax);
  a.Int("heartbeat_ms", t.heartbeat_ms, 1u, 3'600'000u);
  a.Int("lease_ms", t.lease_ms, 1u, 3'600'000u);
}

template <class A, Of<Grant::Job> T>
void Layout(A& a, T& t) {
  a.Record(7);
  a.Id("id", t.id);
  a.Fence("token", t.token);
  a.Name("kind", t.kind, kNameBytesMax);
  a.Bytes("payload", t.payload, kPayloadBytesMax);
  a.Int("timeout_ms", t.timeout_ms);
  a.Int("delivery", t.delivery);
  a.Flag("fence_only", t.fence_only);
}

template <class A, Of<Grant> T>
void Layout(A& a, T& t) {
  a.Record(1);
  a.List("jobs", t.jobs, kBatchJobsMax, kEach);
}

template <class A, Of<EndedReply::Item> T>
void Layout(A& a, T& t) {
  a.Record(4);
  a.Id("job", t.job);
  a.Fence("token", t.token);
  a.Flag("accepted", t.accepted);
  a.Text("reason", t.reason, kErrorMessageBytesMax);
}

template <class A, Of<EndedReply> T>
void Layout(A& a, T& t) {
  a.Record(1);
  a.List("items", t.items, kBatchJobsMax, kEach);
}

template <class A, Of<Revoke::Item> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Id("job", t.job);
  a.Fence("token", t.token);
  a.Text("reason", t.reason, kErrorMessageBytesMax);
}

template <class A, Of<Revoke> T>
void Layout(A& a, T& t) {
  a.Record(1);
  a.List("items", t.items, kHeldMax, kEach);
}

template <class A, Of<BrokerBeat> T>
void Layout(A& a, T& t) {
  a.Record(1);
  a.Flag("known", t.known);
}

template <class A, Of<Adopt> T>
void Layout(A& a, T& t) {
  a.Record(1);
  a.List("items", t.items, kHeldMax, kEach);
}

template <class A, Of<SubmitJobs> T>
void Layout(A& a, T& t) {
  a.Record(2);
  a.Int("request", t.request);
  a.List("jobs", t.jobs, kBatchJobsMax, kEach);
}

template <class A, Of<SubmitRun> T>
void Layout(A& a, T& t) {
  a.Record(4);
  a.Int("request", t.request);
  a.Nested("run", t.run);
  a.List("jobs", t.jobs, kStagesPerPipelineMax, kEach);
  a.Flag("watch", t.watch);
}

template <class A, Of<Watch> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Int("request", t.request);
  a.Org("org", t.org);
  a.Id("run", t.run);
}

template <class A, Of<Cancel> T>
void Layout(A& a, T& t) {
  a.Record(5);
  a.Int("request", t.request);
  a.Org("org", t.org);
  a.List("items", t.items, kBatchJobsMax, kEach);
  a.Name("actor", t.actor, kNameBytesMax);
  a.Text("reason", t.reason, kErrorMessageBytesMax);
}

template <class A, Of<Cancel::Item> T>
void Layout(A& a, T& t) {
  a.Record(2);
  a.Id("id", t.id);
  a.Flag("is_run", t.is_run);
}

template <class A, Of<CancelReply> T>
void Layout(A& a, T& t) {
  a.Record(2);
  a.Int("request", t.request);
  a.List("items", t.items, kBatchJobsMax, kEach);
}

template <class A, Of<CancelReply::Item> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Id("id", t.id);
  a.Enum("effect", t.effect);
  a.Name("state", t.state, kNameBytesMax);
}

template <class A, Of<SetQueue> T>
void Layout(A& a, T& t) {
  a.Record(6);
  a.Int("request", t.request);
  a.Org("org", t.settings.org);
  a.Name("queue", t.settings.queue, kNameBytesMax);
  a.Int("revision", t.settings.revision);
  a.Settings("settings", t.settings);
  a.Name("actor", t.actor, kNameBytesMax);
}

template <class A, Of<SetQueueReply> T>
void Layout(A& a, T& t) {
  a.Record(2);
  a.Int("request", t.request);
  a.Int("revision", t.revision);
}

template <class A, Of<ListQueues> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Int("request", t.request);
  a.Org("org", t.org);
  a.Name("after", t.after, kNameBytesMax);
}

template <class A, Of<ListQueuesReply> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Int("request", t.request);
  a.List("queues", t.queues, kQueuesListedMax, kEach);
  a.Flag("more", t.more);
}

template <class A, Of<ListQueuesReply::Item> T>
void Layout(A& a, T& t) {
  a.Record(8);
  a.Org("org", t.settings.org);
  a.Name("queue", t.settings.queue, kNameBytesMax);
  a.Int("revision", t.settings.revision);
  a.Settings("settings", t.settings);
  a.Int("ready", t.ready);
  a.Int("running", t.running);
  a.Int("waiting", t.waiting);
  a.Int("waiting_bytes", t.waiting_bytes);
}

template <class A, Of<Status> T>
void Layout(A& a, T& t) {
  a.Record(1);
  a.Int("request", t.request);
}

template <class A, Of<SubmitReply::Item> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Id("id", t.id);
  a.Flag("duplicate", t.duplicate);
  a.Id("conflict_with", t.conflict_with);
}

template <class A, Of<SubmitReply> T>
void Layout(A& a, T& t) {
  a.Record(2);
  a.Int("request", t.request);
  a.List("accepted", t.accepted, kListItemsMax, kEach);
}

template <class A, Of<RunUpdate::Stage> T>
void Layout(A& a, T& t) {
  a.Record(11);
  a.Id("job", t.job);
  a.Name("stage", t.stage, kNameBytesMax);
  a.Enum("state", t.state);
  a.Int("deliveries", t.counters.deliveries);
  a.Int("failures", t.counters.failures);
  a.Int("crashes", t.counters.crashes);
  a.Name("worker", t.worker, kNameBytesMax);
  a.Int("rows", t.rows);
  a.Int("bytes", t.bytes);
  a.Name("result", t.result, kResultBytesMax);
  a.Text("error", t.error, kErrorMessageBytesMax);
}

template <class A, Of<RunUpdate> T>
void Layout(A& a, T& t) {
  a.Record(4);
  a.Id("run", t.run);
  a.Enum("state", t.state);
  a.Text("reason", t.reason, kErrorMessageBytesMax);
  a.List("changed", t.changed, kStagesPerPipelineMax, kEach);
}

template <class A, Of<StatusReply::Shard> T>
void Layout(A& a, T& t) {
  a.Record(5);
  a.Int("shard", t.shard);
  a.Int("epoch", t.epoch);
  a.Int("ready", t.ready);
  a.Int("running", t.running);
  a.Int("runs", t.runs);
}

template <class A, Of<StatusReply::Worker> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Name("name", t.name, kNameBytesMax);
  a.Int("concurrency", t.concurrency);
  a.Int("running", t.running);
}

template <class A, Of<StatusReply> T>
void Layout(A& a, T& t) {
  a.Record(4);
  a.Int("request", t.request);
  a.Name("broker", t.broker, kNameBytesMax);
  a.List("shards", t.shards, kListItemsMax, kEach);
  a.List("workers", t.workers, kWorkersMax, kEach);
}

template <class A, Of<Problem> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Int("request", t.request);
  a.Name("code", t.code, kNameBytesMax);
  a.Text("message", t.message, kErrorMessageBytesMax);
}

template <class T>
constexpr Kind KindFor() {
  if constexpr (std::same_as<T, Hello>)
    return Kind::kHello;
  else if constexpr (std::same_as<T, Beat>)
    return Kind::kBeat;
  else if constexpr (std::same_as<T, Ended>)
    return Kind::kEnded;
  else if constexpr (std::same_as<T, Goodbye>)
    return Kind::kGoodbye;
  else if constexpr (std::same_as<T, Orphans>)
    return Kind::kOrphans;
  else if constexpr (std::same_as<T, Welcome>)
    return Kind::kWelcome;
  else if constexpr (std::same_as<T, Grant>)
    return Kind::kGrant;
  else if constexpr (std::same_as<T, EndedReply>)
    return Kind::kEndedReply;
  else if constexpr (std::same_as<T, Revoke>)
    return Kind::kRevoke;
  else if constexpr (std::same_as<T, BrokerBeat>)
    return Kind::kBrokerBeat;
  else if constexpr (std::same_as<T, Adopt>)
    return Kind::kAdopt;
  else if constexpr (std::same_as<T, SubmitJobs>)
    return Kind::kSubmitJobs;
  else if constexpr (std::same_as<T, SubmitRun>)
    return Kind::kSubmitRun;
  else if constexpr (std::same_as<T, Watch>)
    return Kind::kWatch;
  else if constexpr (std::same_as<T, Status>)
    return Kind::kStatus;
  else if constexpr (std::same_as<T, Cancel>)
    return Kind::kCancel;
  else if constexpr (std::same_as<T, CancelReply>)
    return Kind::kCancelReply;
  else if constexpr (std::same_as<T, SetQueue>)
    return Kind::kSetQueue;
  else if constexpr (std::same_as<T, SetQueueReply>)
    return Kind::kSetQueueReply;
  else if constexpr (std::same_as<T, ListQueues>)
    return Kind::kListQueues;
  else if constexpr (std::same_as<T, ListQueuesReply>)
    return Kind::kListQueuesReply;
  else if constexpr (std::same_as<T, SubmitReply>)
    return Kind::kSubmitReply;
  else if constexpr (std::same_as<T, RunUpdate>)
    return Kind::kRunUpdate;
  else if constexpr (std::same_as<T, StatusReply>)
    return Kind::kStatusReply;
  else if constexpr (std::same_as<T, Problem>)
    return Kind::kProblem;
}

template <class T>
void EncodeBody(const T& value, std::string& out) {
  Buffer buffer(out);
  Packer packer(buffer);
  Writer writer(packer);
  Layout(writer, value);
}

template <class T>
Result<T> DecodeBody(std::string_view body) {
  Result<T> value(std::in_place);
  Input in(body);
  Reader reader(in);
  Layout(reader, *value);
  if (in.error.empty() && in.Left() > 0) in.error = fmt::format("{} bytes follow the body", in.Left());
  if (!in.error.empty()) return Fail(ErrorCode::kInvalidArgument, "{}", in.error);
  return value;
}

template <std::size_t kIndex = 0>
Result<Message> DecodeAs(Kind kind, std::string_view body) {
  if constexpr (kIndex < std::variant_size_v<Message>) {
    using T = std::variant_alternative_t<kIndex, Message>;
    if (kind != KindFor<T>()) return DecodeAs<kIndex + 1>(kind, body);
    auto decoded = DecodeBody<T>(body);
    if (!decoded) return Prefixed(std::move(decoded.error()), "{}", Name(kind));
    return Message{std::move(*decoded)};
  } else {
    return Fail(ErrorCode::kInvalidArgument, "kind {} is not one of this protocol", static_cast<unsigned>(kind));
  }
}

template <class T>
std::string EncodeSpec(const T& spec) {
  std::string out(1, static_cast<char>(kProtocolVersion));
  EncodeBody(spec, out);
  return out;
}

template <class T>
Result<T> DecodeSpec(std::string_view bytes, std::string_view what) {
  if (bytes.empty() || bytes.size() > kFrameBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "{}: {} bytes", what, bytes.size());
  const auto version = static_cast<std::uint8_t>(bytes[0]);
  if (version != kProtocolVersion) return Fail(ErrorCode::kInvalidArgument, "{}: version {}", what, version);
  auto spec = DecodeBody<T>(bytes.substr(1));
  if (!spec) return Prefixed(std::move(spec.error()), "{}", what);
  return spec;
}

}  // namespace

std::string Encode(const Message& message) {
  std::string out(1, static_cast<char>(kProtocolVersion));
  std::visit(
      [&out]<class T>(const T& body) {
        out += static_cast<char>(KindFor<T>());
        EncodeBody(body, out);
      },
      message);
  return out;
}

Result<Message> Decode(std::string_view frame) {
  if (frame.size() < kHeaderBytes) return Fail(ErrorCode::kInvalidArgument, "frame of {} bytes has no header", frame.size());
  if (frame.size() > kFrameBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "frame of {} bytes, limit {}", frame.size(), kFrameBytesMax);
  const auto version = static_cast<std::uint8_t>(frame[0]);
  if (version != kProtocolVersion)
    return Fail(ErrorCode::kInvalidArgument, "protocol version {}, this is {}", version, kProtocolVersion);
  return DecodeAs(static_cast<Kind>(static_cast<std::uint8_t>(frame[1])), frame.substr(kHeaderBytes));
}

Kind KindOf(std::string_view frame) {
  if (frame.size() < kHeaderBytes || static_cast<std::uint8_t>(frame[0]) != kProtocolVersion) return Kind::kUnknown;
  const auto kind = static_cast<Kind>(static_cast<std::uint8_t>(frame[1]));
  return Name(kind) == "unknown" ? Kind::kUnknown : kind;
}

std::string EncodeJobSpec(const JobSpec& spec) { return EncodeSpec(spec); }
Result<JobSpec> DecodeJobSpec(std::string_view bytes) { return DecodeSpec<JobSpec>(bytes, "job spec"); }
std::string EncodeRunSpec(const RunSpec& spec) { return EncodeSpec(spec); }
Result<RunSpec> DecodeRunSpec(std::string_view bytes) { return DecodeSpec<RunSpec>(bytes, "run spec"); }

}  // namespace millrace::wire
