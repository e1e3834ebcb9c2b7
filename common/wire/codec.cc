#include "common/wire/codec.h"

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
  void Options(std::string_view, const JobOptions& options) { Str(ToJson(options)); }
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
  void Id(std::string_view field, UuidId<Tag>& out) {
    Id(field, out.uuid);
  }
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
  // Everything but the fields that stand beside it in the record.
  void Settings(std::string_view field, QueueSettings& out) {
    std::string text;
    Name(field, text, kQueueSettingsBytesMax);
    if (!error_.empty()) return;
    auto settings = QueueSettingsFromJson(text);
    if (!settings) return Complain(field, settings.error().message);
    settings->org = out.org;
    settings->queue = std::move(out.queue);
    settings->revision = out.revision;
    out = std::move(*settings);
  }
  void Options(std::string_view field, JobOptions& out) {
    std::string text;
    Name(field, text, kJobOptionsBytesMax);
    if (!error_.empty() || text.empty()) return;
    auto options = JobOptionsFromJson(text);
    if (!options) return Complain(field, options.error().message);
    out = std::move(*options);
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
  template <class T>
  void Nested(std::string_view field, T& record) {
    const msgpack::object* o = Next(field);
    if (!o) return;
    Reader inner(*o, error_);
    Layout(inner, record);
    if (!error_.empty()) error_.insert(0, fmt::format("{}.", field));
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

// Strings and blobs of the tree point into `body`; a container's claimed size is refused before anything is allocated.
template <class T>
Result<T> DecodeBody(std::string_view body) {
  const msgpack::unpack_limit limit(kListItemsMax, 0, kPayloadBytesMax, kPayloadBytesMax, 0, kDepthMax);
  constexpr auto kReference = [](msgpack::type::object_type, std::size_t, void*) { return true; };
  T value;
  std::string error;
  try {
    msgpack::zone zone;
    std::size_t offset = 0;
    bool referenced = false;
    const msgpack::object root =
        msgpack::unpack(zone, body.data(), body.size(), offset, referenced, kReference, nullptr, limit);
    if (offset != body.size()) return Fail(ErrorCode::kInvalidArgument, "{} bytes follow the body", body.size() - offset);
    Reader reader(root, error);
    Layout(reader, value);
  } catch (const msgpack::unpack_error& e) {
    return Fail(ErrorCode::kInvalidArgument, "not a msgpack body within limits: {}", e.what());
  }
  if (!error.empty()) return Fail(ErrorCode::kInvalidArgument, "{}", error);
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
