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
#include "common/wire/codec_reader.h"
#include "common/wire/text.h"

namespace millrace::wire {
namespace codec_detail {  // named, so that a record's Layout is found by the Reader it is called with

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

template <class A, Of<ListUnserved> T>
void Layout(A& a, T& t) {
  a.Record(2);
  a.Int("request", t.request);
  a.Org("org", t.org);
}

template <class A, Of<ListKept> T>
void Layout(A& a, T& t) {
  a.Record(5);
  a.Int("request", t.request);
  a.Org("org", t.org);
  a.Name("queue", t.queue, kNameBytesMax);
  a.Name("kind", t.kind, kNameBytesMax);
  a.Bytes("cursor", t.cursor, kCursorBytesMax);
}

template <class A, Of<ListKeptReply> T>
void Layout(A& a, T& t) {
  a.Record(3);
  a.Int("request", t.request);
  a.List("jobs", t.jobs, kKeptListedMax, kEachId);
  a.Bytes("cursor", t.cursor, kCursorBytesMax);
}

template <class A, Of<ListUnservedReply::Item> T>
void Layout(A& a, T& t) {
  a.Record(5);
  a.Name("queue", t.queue, kNameBytesMax);
  a.Name("kind", t.kind, kNameBytesMax);
  a.Name("root", t.root, kPathBytesMax);
  a.Int("ready", t.ready);
  a.Time("since", t.since);
}

template <class A, Of<ListUnservedReply> T>
void Layout(A& a, T& t) {
  a.Record(4);
  a.Int("request", t.request);
  a.List("items", t.items, kQueuesListedMax, kEach);
  a.Flag("more", t.more);
  a.Int("workers", t.workers);
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
  else if constexpr (std::same_as<T, ListUnserved>)
    return Kind::kListUnserved;
  else if constexpr (std::same_as<T, ListUnservedReply>)
    return Kind::kListUnservedReply;
  else if constexpr (std::same_as<T, ListKept>)
    return Kind::kListKept;
  else if constexpr (std::same_as<T, ListKeptReply>)
    return Kind::kListKeptReply;
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

template <class T>
Result<Message> DecodeAs(std::string_view body) {
  auto decoded = DecodeBody<T>(body);
  if (!decoded) return Prefixed(std::move(decoded.error()), "{}", Name(KindFor<T>()));
  return Message{std::move(*decoded)};
}

// By the byte that says the kind; null: not one of this protocol.
using Decoder = Result<Message> (*)(std::string_view);
constexpr std::array<Decoder, 256> kDecoders = []<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
  std::array<Decoder, 256> table{};
  ((table[static_cast<std::uint8_t>(KindFor<std::variant_alternative_t<kIndex, Message>>())] =
        &DecodeAs<std::variant_alternative_t<kIndex, Message>>),
   ...);
  return table;
}(std::make_index_sequence<std::variant_size_v<Message>>());

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

}  // namespace codec_detail

using codec_detail::DecodeSpec, codec_detail::EncodeBody, codec_detail::EncodeSpec, codec_detail::KindFor;

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
  const auto kind = static_cast<std::uint8_t>(frame[1]);
  const codec_detail::Decoder decode = codec_detail::kDecoders[kind];
  if (decode == nullptr) return Fail(ErrorCode::kInvalidArgument, "kind {} is not one of this protocol", kind);
  return decode(frame.substr(kHeaderBytes));
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
