#include "broker/entry_codec.h"

#include <type_traits>
#include <utility>

#include "common/model/instants.h"
#include "common/model/job_options.h"

namespace millrace {
namespace {

constexpr char kEntryVersion = 3;

// Which fields follow, in this order. Never renumber, never reuse.
enum Field : std::uint64_t {
  kCheck = 1 << 0,  // no bytes
  kAttempts = 1 << 1,
  kTimeout = 1 << 2,
  kRunAt = 1 << 3,
  kCounters = 1 << 4,
  kBackoff = 1 << 5,
  kOptions = 1 << 6,
  kStage = 1 << 7,
  kEffect = 1 << 8,
  kQueue = 1 << 9,  // queue, priority, root and kind, where the line's are not the job's
  kKnown = (1 << 10) - 1,
};

class Writer {
 public:
  void Int(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }
  void Signed(std::int64_t value) {  // zigzag
    Int((static_cast<std::uint64_t>(value) << 1) ^ static_cast<std::uint64_t>(value >> 63));
  }
  void Text(std::string_view text) {
    Int(text.size());
    bytes_.append(text);
  }
  void Byte(char c) { bytes_ += c; }
  void Reserve(std::size_t n) { bytes_.reserve(n); }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  std::uint64_t Int() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && !bytes_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes_.front());
      bytes_.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7fU} << shift;
      if (byte < 0x80) return value;
    }
    ok_ = false;
    return 0;
  }
  std::int64_t Signed() {
    const std::uint64_t raw = Int();
    return static_cast<std::int64_t>((raw >> 1) ^ (~(raw & 1) + 1));
  }
  template <class T>
  T Small() {  // kCorrupt in the end when it does not fit
    const auto value = [this] {
      if constexpr (std::is_signed_v<T>)
        return Signed();
      else
        return Int();
    }();
    if (!std::in_range<T>(value)) ok_ = false;
    return static_cast<T>(value);
  }
  std::string Text() {
    const std::uint64_t size = Int();
    if (!ok_ || bytes_.size() < size) {
      ok_ = false;
      return {};
    }
    std::string text(bytes_.substr(0, size));
    bytes_.remove_prefix(size);
    return text;
  }
  bool Done() const { return ok_ && bytes_.empty(); }

 private:
  std::string_view bytes_;
  bool ok_ = true;
};

// A kept line says the class, every line the limit key; what is left of the options is usually nothing.
std::string OptionsBeside(const JobOptions& options, const LineKey& line) {
  static const JobOptions kDefaults;
  if (options == kDefaults) return {};
  JobOptions rest = options;
  if (line.durability == Durability::kRedis) rest.durability = Durability::kUnsaid;
  if (rest.limit_key == line.limit_key) rest.limit_key.clear();
  return rest == kDefaults ? std::string() : ToJson(rest);
}

// Microseconds between two times of any value, and back.
std::int64_t Between(WallTime from, WallTime to) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(ToUnixMicros(to)) -
                                   static_cast<std::uint64_t>(ToUnixMicros(from)));
}
WallTime After(WallTime from, std::int64_t us) {
  return FromUnixMicros(
      static_cast<std::int64_t>(static_cast<std::uint64_t>(ToUnixMicros(from)) + static_cast<std::uint64_t>(us)));
}

}  // namespace

std::string EncodeEntry(const JobSpec& spec, const Counters& counters, const LineKey& line, bool check) {
  static const JobSpec kDefaults;
  const RetryPolicy& retry = spec.retry;
  const std::string options = OptionsBeside(spec.options, line);
  std::uint64_t fields = 0;
  if (check) fields |= kCheck;
  if (retry.max_attempts != kDefaults.retry.max_attempts) fields |= kAttempts;
  if (retry.backoff_base != kDefaults.retry.backoff_base || retry.backoff_cap != kDefaults.retry.backoff_cap)
    fields |= kBackoff;
  if (spec.timeout.count() != 0) fields |= kTimeout;
  if (spec.run_at) fields |= kRunAt;
  if (counters != Counters{}) fields |= kCounters;
  if (!options.empty()) fields |= kOptions;
  if (!spec.stage.empty()) fields |= kStage;
  if (!spec.effect.empty()) fields |= kEffect;
  if (spec.queue != line.queue || spec.priority != line.priority || spec.root != line.root || spec.kind != line.kind)
    fields |= kQueue;

  Writer w;
  w.Reserve(spec.payload.size() + options.size() + 24);
  w.Byte(kEntryVersion);
  w.Int(fields);
  w.Signed(Between(TimeOf(spec.id.uuid), spec.submitted_at));
  if ((fields & kAttempts) != 0) w.Signed(retry.max_attempts);
  if ((fields & kTimeout) != 0) w.Signed(spec.timeout.count());
  if ((fields & kRunAt) != 0) w.Signed(ToUnixMicros(*spec.run_at));
  if ((fields & kCounters) != 0) w.Int(counters.deliveries), w.Int(counters.failures), w.Int(counters.crashes);
  if ((fields & kBackoff) != 0) w.Signed(retry.backoff_base.count()), w.Signed(retry.backoff_cap.count());
  if ((fields & kOptions) != 0) w.Text(options);
  if ((fields & kStage) != 0) w.Text(spec.stage);
  if ((fields & kEffect) != 0) w.Text(spec.effect);
  if ((fields & kQueue) != 0) w.Text(spec.queue), w.Signed(spec.priority), w.Text(spec.root), w.Text(spec.kind);
  w.Text(spec.payload);
  return w.Take();
}

Result<JobEntry> DecodeEntry(std::string_view bytes, const JobId& id, const LineKey& line) {
  Result<JobEntry> entry{std::in_place};
  if (auto decoded = DecodeEntryInto(*entry, bytes, id, line); !decoded) return std::unexpected(std::move(decoded.error()));
  return entry;
}

Result<void> DecodeEntryInto(JobEntry& entry, std::string_view bytes, const JobId& id, const LineKey& line) {
  if (bytes.empty() || bytes.front() != kEntryVersion)
    return Fail(ErrorCode::kCorrupt, "queue entry {}: not version {}", id.ToString(), int{kEntryVersion});
  Reader r(bytes.substr(1));
  JobSpec& spec = entry.spec;
  const std::uint64_t fields = r.Int();
  const auto has = [fields](Field field) { return (fields & field) != 0; };
  spec.id = id;
  spec.org = line.org;
  spec.submitted_at = After(TimeOf(id.uuid), r.Signed());
  entry.check = has(kCheck);
  if (has(kAttempts)) spec.retry.max_attempts = r.Small<int>();
  if (has(kTimeout)) spec.timeout = Millis{r.Signed()};
  if (has(kRunAt)) spec.run_at = FromUnixMicros(r.Signed());
  if (has(kCounters)) {
    entry.counters.deliveries = r.Small<std::uint32_t>();
    entry.counters.failures = r.Small<std::uint32_t>();
    entry.counters.crashes = r.Small<std::uint32_t>();
  }
  if (has(kBackoff)) {
    spec.retry.backoff_base = Millis{r.Signed()};
    spec.retry.backoff_cap = Millis{r.Signed()};
  }
  const std::string options = has(kOptions) ? r.Text() : std::string();
  if (has(kStage)) spec.stage = r.Text();
  if (has(kEffect)) spec.effect = r.Text();
  if (has(kQueue)) {
    spec.queue = r.Text();
    spec.priority = r.Small<int>();
    spec.root = r.Text();
    spec.kind = r.Text();
  } else {
    spec.queue = line.queue;
    spec.priority = line.priority;
    spec.root = line.root;
    spec.kind = line.kind;
  }
  spec.payload = r.Text();
  if (!r.Done() || (fields & ~std::uint64_t{kKnown}) != 0)
    return Fail(ErrorCode::kCorrupt, "queue entry {}: {} bytes do not make a job", id.ToString(), bytes.size());
  if (!options.empty()) {
    auto read = JobOptionsFromJson(options);
    if (!read) return Fail(ErrorCode::kCorrupt, "queue entry {}: {}", id.ToString(), read.error().message);
    spec.options = std::move(*read);
  }
  if (line.durability == Durability::kRedis) spec.options.durability = Durability::kRedis;
  if (spec.options.limit_key.empty()) spec.options.limit_key = line.limit_key;
  ClampInstants(spec);
  return {};
}

}  // namespace millrace
