#include "broker/entry_codec.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "common/model/job_options.h"

namespace millrace {
namespace {

constexpr char kEntryVersion = 2;

class Writer {
 public:
  template <class T>
  void Int(T value) {
    static_assert(std::is_integral_v<T>);
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes_.append(raw, sizeof(T));
  }
  void Text(std::string_view text) {
    Int(static_cast<std::uint32_t>(text.size()));
    bytes_.append(text);
  }
  void Id(const Uuid& id) { bytes_.append(id.AsBytes()); }
  void Reserve(std::size_t n) { bytes_.reserve(n); }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T Int() {
    T value{};
    if (bytes_.size() < sizeof(T)) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_.remove_prefix(sizeof(T));
    return value;
  }
  std::string Text() {
    const auto size = Int<std::uint32_t>();
    if (!ok_ || bytes_.size() < size) {
      ok_ = false;
      return {};
    }
    std::string text(bytes_.substr(0, size));
    bytes_.remove_prefix(size);
    return text;
  }
  Uuid Id() {
    Uuid id;
    if (bytes_.size() < id.bytes.size()) {
      ok_ = false;
      return id;
    }
    std::memcpy(id.bytes.data(), bytes_.data(), id.bytes.size());
    bytes_.remove_prefix(id.bytes.size());
    return id;
  }
  bool Done() const { return ok_ && bytes_.empty(); }

 private:
  std::string_view bytes_;
  bool ok_ = true;
};

}  // namespace

std::string EncodeEntry(const JobSpec& spec, const Counters& counters) {
  Writer w;
  w.Reserve(spec.payload.size() + spec.kind.size() + spec.queue.size() + spec.effect.size() + spec.root.size() + 128);
  w.Int(kEntryVersion);
  w.Id(spec.id.uuid);
  w.Int(spec.org.value());
  w.Text(spec.stage);
  w.Text(spec.kind);
  w.Text(spec.queue);
  w.Int(static_cast<std::int32_t>(spec.priority));
  w.Text(spec.payload);
  w.Text(spec.effect);
  w.Text(spec.root);
  w.Int(static_cast<std::int32_t>(spec.retry.max_attempts));
  w.Int(static_cast<std::int64_t>(spec.retry.backoff_base.count()));
  w.Int(static_cast<std::int64_t>(spec.retry.backoff_cap.count()));
  w.Int(static_cast<std::int64_t>(spec.timeout.count()));
  w.Int(static_cast<std::uint8_t>(spec.run_at.has_value()));
  w.Int(spec.run_at ? ToUnixMicros(*spec.run_at) : std::int64_t{0});
  w.Int(ToUnixMicros(spec.submitted_at));
  w.Text(ToJson(spec.options));
  w.Int(counters.deliveries);
  w.Int(counters.failures);
  w.Int(counters.crashes);
  return w.Take();
}

Result<JobEntry> DecodeEntry(std::string_view bytes) {
  Reader r(bytes);
  if (r.Int<char>() != kEntryVersion) return Fail(ErrorCode::kCorrupt, "queue entry: not version {}", int{kEntryVersion});
  JobEntry entry;
  JobSpec& spec = entry.spec;
  spec.id = JobId{r.Id()};
  spec.org = OrgId{r.Int<std::int64_t>()};
  spec.stage = r.Text();
  spec.kind = r.Text();
  spec.queue = r.Text();
  spec.priority = r.Int<std::int32_t>();
  spec.payload = r.Text();
  spec.effect = r.Text();
  spec.root = r.Text();
  spec.retry.max_attempts = r.Int<std::int32_t>();
  spec.retry.backoff_base = Millis{r.Int<std::int64_t>()};
  spec.retry.backoff_cap = Millis{r.Int<std::int64_t>()};
  spec.timeout = Millis{r.Int<std::int64_t>()};
  const bool has_run_at = r.Int<std::uint8_t>() != 0;
  const auto run_at_us = r.Int<std::int64_t>();
  if (has_run_at) spec.run_at = FromUnixMicros(run_at_us);
  spec.submitted_at = FromUnixMicros(r.Int<std::int64_t>());
  if (const std::string text = r.Text(); !text.empty()) {
    MILLRACE_TRY_ASSIGN(spec.options, JobOptionsFromJson(text));
  }
  entry.counters.deliveries = r.Int<std::uint32_t>();
  entry.counters.failures = r.Int<std::uint32_t>();
  entry.counters.crashes = r.Int<std::uint32_t>();
  if (!r.Done()) return Fail(ErrorCode::kCorrupt, "queue entry: {} bytes do not make a job", bytes.size());
  return entry;
}

}  // namespace millrace
