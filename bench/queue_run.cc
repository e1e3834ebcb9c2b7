// Queue throughput, end to end, as three kinds of processes over TCP; bench/run_queue starts the servers and these.
//   millrace_queue_run broker --front E --back E --redis HOST:PORT --ledger DSN
//   millrace_queue_run worker --back E --bitmap FILE [--window N]
//   millrace_queue_run client --front E --bitmap FILE --jobs N --durability redis|ledger [--fill] [--batch N]
//                             [--outstanding N] --redis HOST:PORT --ledger DSN [--pid NAME=PID]... [--note K=V]...
// The broker is the product's (broker/broker.h). The worker speaks the wire protocol, decodes every job and reports success
// at once; it repeats what is not answered. Each payload is 8 bytes of sequence number and 92 pseudo-random ones; the worker
// counts each number in a file that the client maps too, so that lost and doubled jobs show. The client submits in a closed
// loop: `outstanding` batches wait for their answer. With --fill every job is accepted before the worker starts: enqueueing
// and running are measured apart, and Redis' memory per waiting job. Recorded jobs are counted by SQL. CPU is read from /proc.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "broker/broker.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/drivers/postgres.h"
#include "common/drivers/redis.h"
#include "common/queue/redis_queue.h"
#include "common/wire/messages.h"
#include "common/wire/zmq_transport.h"

namespace millrace::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kPayloadBytes = 100;
constexpr Millis kGiveUp{600'000};

struct Arguments {
  std::string mode, front, back, redis, ledger, bitmap, durability = "redis";
  std::uint64_t jobs = 100'000, batch = 500, outstanding = 32, window = 20'000;
  bool fill = false;
  std::vector<std::pair<std::string, long>> pids;
  Json notes = Json::object();
};

std::atomic<bool> stop{false};

// One byte per sequence number, then how many were counted, then whether the worker may begin.
class Bitmap {
 public:
  static Result<Bitmap> Open(const std::string& path, std::uint64_t jobs) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return Fail(ErrorCode::kUnavailable, "cannot open {}", path);
    const std::size_t size = (jobs + 7) / 8 * 8 + 16;
    void* at = ::ftruncate(fd, static_cast<off_t>(size)) == 0 ? ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                                                              : MAP_FAILED;
    ::close(fd);
    if (at == MAP_FAILED) return Fail(ErrorCode::kUnavailable, "cannot map {}", path);
    return Bitmap(static_cast<std::uint8_t*>(at), jobs, size);
  }
  void Count(std::uint64_t n) {
    if (n < jobs_) std::atomic_ref(at_[n]).fetch_add(1, std::memory_order_relaxed);
    Word(0).fetch_add(1, std::memory_order_release);
  }
  std::uint64_t counted() const { return Word(0).load(std::memory_order_acquire); }
  void Begin() { Word(1).store(1); }
  bool begun() const { return Word(1).load() != 0; }
  std::uint64_t jobs() const { return jobs_; }
  std::uint8_t at(std::uint64_t n) const { return at_[n]; }

 private:
  Bitmap(std::uint8_t* at, std::uint64_t jobs, std::size_t size) : at_(at), jobs_(jobs), size_(size) {}
  std::atomic_ref<std::uint64_t> Word(std::size_t i) const {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(at_ + size_ - 16 + 8 * i));
  }
  std::uint8_t* at_;
  std::uint64_t jobs_;
  std::size_t size_;
};

class Line {  // one DEALER; used by one thread
 public:
  static Result<Line> Connect(const std::string& endpoint) {
    MILLRACE_TRY_ASSIGN(auto transport, wire::MakeZmqTransport(wire::MakeZmqContext()));
    MILLRACE_TRY_ASSIGN(auto socket, transport->Connect(endpoint));
    return Line(std::move(transport), std::move(socket));
  }
  Result<void> Send(const wire::Message& message) {
    const std::string frame = wire::Encode(message);
    const MonoTime give_up = clock_.Now() + Millis{30'000};
    while (true) {
      auto sent = socket_->Send(frame);
      if (sent || clock_.Now() >= give_up) return sent;
      transport_->Wait(Millis{5});
    }
  }
  void Wait(Millis timeout) { transport_->Wait(timeout); }
  std::optional<std::string> Receive() { return socket_->Receive(); }

 private:
  Line(std::unique_ptr<wire::Transport> transport, std::unique_ptr<wire::ClientSocket> socket)
      : transport_(std::move(transport)), socket_(std::move(socket)) {}
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ClientSocket> socket_;  // destroyed before its transport
  SystemClock clock_;
};

// ---- broker ----------------------------------------------------------------------------------------------------------------
Result<void> RunBroker(const Arguments& args) {
  const SystemClock clock;
  SystemRandom random;
  IdGenerator ids(clock, random);
  BrokerOptions options;
  options.owner = ids.Next<OwnerId>();
  options.front_endpoints = {args.front};
  options.back_endpoints = {args.back};
  options.clock = &clock;
  options.random = &random;
  options.make_ledger = [&]() -> Result<std::unique_ptr<Ledger>> {
    MILLRACE_TRY_ASSIGN(auto ledger, OpenPostgresLedger({.dsn = args.ledger,
                                                         .clock = &clock,
                                                         .writer = ids.Next<AuditWriterId>(),
                                                         .shard_count = kShardCountEmbedded,
                                                         .actor = "bench"},
                                                        clock.Now() + Millis{10'000}));
    MILLRACE_TRY(ledger->Migrate(clock.Now() + Millis{10'000}));
    return ledger;
  };
  options.make_queue = [&]() -> Result<std::unique_ptr<JobQueue>> {
    MILLRACE_TRY_ASSIGN(auto queue,
                        RedisQueue::Open({.endpoint = args.redis, .prefix = "bench"}, clock.Now() + Millis{10'000}));
    return std::unique_ptr<JobQueue>(std::move(queue));
  };
  const auto context = wire::MakeZmqContext();
  options.make_transport = [&] { return wire::MakeZmqTransport(context); };
  Broker broker(std::move(options));
  MILLRACE_TRY(broker.Start());
  while (!stop) std::this_thread::sleep_for(Millis{20});
  broker.RequestStop();
  broker.Join();
  return {};
}

// ---- worker ----------------------------------------------------------------------------------------------------------------
class BenchWorker {
 public:
  BenchWorker(const Arguments& args, Bitmap bitmap, Line line)
      : window_(args.window), bitmap_(bitmap), line_(std::move(line)), random_(), ids_(clock_, random_) {
    me_ = ids_.Next<WorkerId>();
  }
  Result<void> Run() {
    MILLRACE_TRY(Hello());
    MonoTime beat = clock_.Now() + kHeartbeatInterval;
    while (!stop) {
      line_.Wait(Millis{100});
      std::vector<AttemptReport> reports;
      while (auto frame = line_.Receive()) MILLRACE_TRY(Take(*frame, reports));
      MILLRACE_TRY(Report(std::move(reports)));
      if (Limit() - said_ >= window_ / 8) {  // answers freed credit, and nothing else would say so
        MILLRACE_TRY(Beat());
      }
      if (clock_.Now() < beat) continue;
      beat += kHeartbeatInterval;
      if (!known_) {
        MILLRACE_TRY(Hello());
        continue;
      }
      MILLRACE_TRY(Beat());
      MILLRACE_TRY(Repeat());
    }
    return line_.Send(wire::Goodbye{.worker = me_});
  }

 private:
  struct Unanswered {
    AttemptReport report;
    MonoTime since;
  };
  Result<void> Beat() {
    said_ = Limit();
    return line_.Send(wire::Beat{.worker = me_, .credit_limit = said_, .held = {}, .progress = {}, .draining = false});
  }
  std::uint64_t Limit() const { return taken_ + (unanswered_.size() < window_ ? window_ - unanswered_.size() : 0); }
  Result<void> Hello() {
    taken_ = 0;
    said_ = Limit();
    return line_.Send(wire::Hello{.worker = me_,
                                  .name = "bench",
                                  .queues = {},
                                  .kinds = {"noop"},
                                  .roots = {},
                                  .concurrency = static_cast<std::uint32_t>(window_),
                                  .credit_limit = Limit(),
                                  .held = {}});
  }
  Result<void> Take(const std::string& frame, std::vector<AttemptReport>& reports) {
    MILLRACE_TRY_ASSIGN(const wire::Message message, wire::Decode(frame));
    if (std::holds_alternative<wire::Welcome>(message)) known_ = true;
    if (const auto* beat = std::get_if<wire::BrokerBeat>(&message)) known_ = beat->known;
    if (const auto* reply = std::get_if<wire::EndedReply>(&message))
      for (const auto& item : reply->items) unanswered_.erase(item.token.value());
    if (const auto* grant = std::get_if<wire::Grant>(&message)) {
      const WallTime now = clock_.WallNow();
      const MonoTime since = clock_.Now();
      for (const auto& job : grant->jobs) {
        std::uint64_t n = UINT64_MAX;
        if (job.payload.size() == kPayloadBytes) std::memcpy(&n, job.payload.data(), sizeof n);
        bitmap_.Count(n);
        ++taken_;
        AttemptReport report;
        report.job = job.id;
        report.token = job.token;
        report.end = AttemptEnd::kSucceeded;
        report.started_at = report.finished_at = now;
        reports.push_back(report);
        unanswered_.emplace(job.token.value(), Unanswered{std::move(report), since});
      }
    }
    return {};
  }
  Result<void> Report(std::vector<AttemptReport> reports) {
    for (std::size_t at = 0; at < reports.size(); at += kBatchJobsMax) {
      said_ = Limit();
      wire::Ended ended{.worker = me_, .credit_limit = said_, .reports = {}};
      for (std::size_t i = at; i < std::min(at + kBatchJobsMax, reports.size()); ++i)
        ended.reports.push_back(std::move(reports[i]));
      MILLRACE_TRY(line_.Send(ended));
    }
    return {};
  }
  Result<void> Repeat() {
    std::vector<AttemptReport> late;
    const MonoTime before = clock_.Now() - Millis{5'000};
    for (auto& [token, one] : unanswered_)
      if (one.since < before) {
        late.push_back(one.report);
        one.since = clock_.Now();
      }
    return Report(std::move(late));
  }

  const std::uint64_t window_;
  Bitmap bitmap_;
  Line line_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_;
  WorkerId me_;
  bool known_ = false;
  std::uint64_t taken_ = 0, said_ = 0;  // grants since Hello; the limit that the broker heard last
  std::unordered_map<std::uint64_t, Unanswered> unanswered_;  // by token
};

Result<void> RunWorker(const Arguments& args) {
  MILLRACE_TRY_ASSIGN(const Bitmap bitmap, Bitmap::Open(args.bitmap, args.jobs));
  while (!bitmap.begun() && !stop) std::this_thread::sleep_for(Millis{5});
  MILLRACE_TRY_ASSIGN(Line line, Line::Connect(args.back));
  return BenchWorker(args, bitmap, std::move(line)).Run();
}

// ---- client ----------------------------------------------------------------------------------------------------------------
// Seconds of CPU of a process and its children.
double CpuSeconds(long pid) {
  double ticks = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream in(entry.path() / "stat");
    std::string text((std::istreambuf_iterator<char>(in)), {});
    const auto at = text.rfind(')');
    if (at == std::string::npos) continue;
    std::istringstream rest(text.substr(at + 2));
    std::string state, skip;
    long parent = 0, user = 0, system = 0;
    rest >> state >> parent;
    for (int i = 0; i < 9; ++i) rest >> skip;
    rest >> user >> system;
    if (std::atol(name.c_str()) == pid || parent == pid) ticks += static_cast<double>(user + system);
  }
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

class BenchClient {
 public:
  BenchClient(const Arguments& args, Bitmap bitmap, Line line) : args_(args), bitmap_(bitmap), line_(std::move(line)) {}

  Result<Json> Run() {
    MILLRACE_TRY(AwaitBroker());
    MILLRACE_TRY_ASSIGN(const std::int64_t memory_before, RedisMemory());
    std::map<std::string, double> cpu;
    for (const auto& [name, pid] : args_.pids) cpu[name] = CpuSeconds(pid);
    const double own = OwnCpu();
    if (!args_.fill) bitmap_.Begin();
    const MonoTime start = clock_.Now();
    MILLRACE_TRY(SubmitAll());
    const MonoTime accepted = clock_.Now();
    MonoTime begun = start;
    double bytes_per_job = 0;
    if (args_.fill) {
      MILLRACE_TRY_ASSIGN(const std::int64_t memory, RedisMemory());
      bytes_per_job = static_cast<double>(memory - memory_before) / static_cast<double>(args_.jobs);
      begun = clock_.Now();
      bitmap_.Begin();
    }
    while (bitmap_.counted() < args_.jobs && clock_.Now() < start + kGiveUp) std::this_thread::sleep_for(Millis{2});
    const MonoTime executed = clock_.Now();
    MILLRACE_TRY_ASSIGN(const std::int64_t recorded_jobs, AwaitRecorded(start + kGiveUp));
    const MonoTime recorded = clock_.Now();
    std::uint64_t lost = 0, doubled = 0;
    for (std::uint64_t i = 0; i < args_.jobs; ++i) {
      lost += bitmap_.at(i) == 0 ? 1U : 0U;
      doubled += bitmap_.at(i) > 1 ? 1U : 0U;
    }
    const auto rate = [&](MonoTime from, MonoTime to) {
      return std::llround(static_cast<double>(args_.jobs) * 1e6 /
                          static_cast<double>(std::max<std::int64_t>(1, (to - from).count())));
    };
    Json out = args_.notes;
    out.update(Json{{"durability", args_.durability},
                    {"form", args_.fill ? "fill, then drain" : "flow"},
                    {"jobs", args_.jobs},
                    {"batch", args_.batch},
                    {"payload_bytes", kPayloadBytes},
                    {"enqueued_per_s", rate(start, accepted)},
                    {"executed_per_s", rate(begun, executed)},
                    {"recorded_per_s", rate(begun, recorded)},
                    {"accepted", accepted_},
                    {"outcomes", recorded_jobs},
                    {"lost", lost},
                    {"doubled", doubled}});
    if (args_.fill) out["redis_bytes_per_waiting_job"] = bytes_per_job;
    Json per_job = Json::object();
    const auto micros = [&](double seconds) { return std::round(seconds * 1e8 / static_cast<double>(args_.jobs)) / 100; };
    for (const auto& [name, pid] : args_.pids) per_job[name] = micros(CpuSeconds(pid) - cpu[name]);
    per_job["client"] = micros(OwnCpu() - own);
    out["cpu_us_per_job"] = per_job;
    return out;
  }

 private:
  static double OwnCpu() { return CpuSeconds(::getpid()); }
  Result<std::int64_t> RedisMemory() {
    MILLRACE_TRY_ASSIGN(const auto endpoint, redis::ParseEndpoint(args_.redis));
    MILLRACE_TRY_ASSIGN(auto connection, redis::Connection::Connect(endpoint, {}, clock_.Now() + Millis{5'000}));
    MILLRACE_TRY_ASSIGN(const auto reply, connection.Call({"INFO", "memory"}, clock_.Now() + Millis{5'000}));
    const auto at = reply.text.find("used_memory_dataset:");
    if (at == std::string::npos) return Fail(ErrorCode::kCorrupt, "INFO memory has no used_memory_dataset");
    return std::atoll(reply.text.c_str() + at + 20);
  }
  Result<void> AwaitBroker() {
    const MonoTime give_up = clock_.Now() + Millis{20'000};
    while (clock_.Now() < give_up) {
      MILLRACE_TRY(line_.Send(wire::Status{.request = 1}));
      line_.Wait(Millis{200});
      while (auto frame = line_.Receive()) {
        MILLRACE_TRY_ASSIGN(const wire::Message message, wire::Decode(*frame));
        if (const auto* status = std::get_if<wire::StatusReply>(&message); status != nullptr && !status->shards.empty())
          return {};
      }
    }
    return Fail(ErrorCode::kTimedOut, "the broker does not get ready");
  }
  wire::SubmitJobs Batch() {
    wire::SubmitJobs submit{.request = 1000 + next_, .jobs = {}};
    for (std::uint64_t i = 0; i < args_.batch && next_ < args_.jobs; ++i, ++next_) {
      JobSpec job;
      job.id = ids_.Next<JobId>();
      job.kind = "noop";
      job.payload.resize(kPayloadBytes);
      std::memcpy(job.payload.data(), &next_, sizeof next_);
      for (std::size_t at = sizeof next_; at < kPayloadBytes; at += 4) {
        state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
        std::memcpy(job.payload.data() + at, &state_, std::min<std::size_t>(4, kPayloadBytes - at));
      }
      if (args_.durability == "redis") job.options.durability = Durability::kRedis;
      submit.jobs.push_back(std::move(job));
    }
    return submit;
  }
  Result<void> SubmitAll() {
    std::uint64_t waiting = 0;
    const MonoTime give_up = clock_.Now() + kGiveUp;
    while (accepted_ < args_.jobs && clock_.Now() < give_up) {
      while (waiting < args_.outstanding && next_ < args_.jobs) {
        MILLRACE_TRY(line_.Send(Batch()));
        ++waiting;
      }
      line_.Wait(Millis{100});
      while (auto frame = line_.Receive()) {
        MILLRACE_TRY_ASSIGN(const wire::Message message, wire::Decode(*frame));
        if (const auto* problem = std::get_if<wire::Problem>(&message))
          return Fail(ErrorCode::kRejected, "{}: {}", problem->code, problem->message);
        if (const auto* reply = std::get_if<wire::SubmitReply>(&message)) {
          accepted_ += reply->accepted.size();
          --waiting;
        }
      }
    }
    return {};
  }
  PgOptions Options() const {
    PgOptions options;
    options.dsn = args_.ledger;
    return options;
  }
  Result<std::int64_t> AwaitRecorded(MonoTime give_up) {
    MILLRACE_TRY_ASSIGN(auto connection, PgConnection::Connect(Options(), clock_, clock_.Now() + Millis{5'000}));
    while (true) {
      MILLRACE_TRY_ASSIGN(const auto rows,
                          connection->QueryOnce("select count(*) from millrace.outcome", {}, clock_.Now() + Millis{60'000}));
      const std::int64_t n = rows.Int(0, 0);
      if (n >= static_cast<std::int64_t>(args_.jobs) || clock_.Now() >= give_up) return n;
      std::this_thread::sleep_for(Millis{100});
    }
  }

  const Arguments& args_;
  Bitmap bitmap_;
  Line line_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::uint64_t next_ = 0, accepted_ = 0, state_ = 0x9e3779b97f4a7c15ULL;
};

Result<void> RunClient(const Arguments& args) {
  MILLRACE_TRY_ASSIGN(const Bitmap bitmap, Bitmap::Open(args.bitmap, args.jobs));
  MILLRACE_TRY_ASSIGN(Line line, Line::Connect(args.front));
  MILLRACE_TRY_ASSIGN(const Json measured, BenchClient(args, bitmap, std::move(line)).Run());
  fmt::print("{}\n", measured.dump());
  const bool right = measured["lost"] == 0 && measured["doubled"] == 0 && measured["outcomes"] == args.jobs;
  if (!right) return Fail(ErrorCode::kRejected, "jobs were lost, doubled or not recorded");
  return {};
}

Result<Arguments> Parse(int argc, char** argv) {
  Arguments args;
  if (argc > 1) args.mode = argv[1];
  const std::map<std::string, std::string*> texts{{"--front", &args.front},   {"--back", &args.back},
                                                  {"--redis", &args.redis},   {"--ledger", &args.ledger},
                                                  {"--bitmap", &args.bitmap}, {"--durability", &args.durability}};
  const std::map<std::string, std::uint64_t*> numbers{
      {"--jobs", &args.jobs}, {"--batch", &args.batch}, {"--outstanding", &args.outstanding}, {"--window", &args.window}};
  for (int i = 2; i < argc; ++i) {
    const std::string key = argv[i];
    if (key == "--fill") {
      args.fill = true;
      continue;
    }
    if (++i >= argc) return Fail(ErrorCode::kInvalidArgument, "{} needs a value", key);
    const std::string value = argv[i];
    const auto equals = value.find('=');
    if (const auto text = texts.find(key); text != texts.end())
      *text->second = value;
    else if (const auto number = numbers.find(key); number != numbers.end())
      *number->second = std::max<std::uint64_t>(1, std::strtoull(value.c_str(), nullptr, 10));
    else if (key == "--pid" && equals != std::string::npos)
      args.pids.emplace_back(value.substr(0, equals), std::atol(value.c_str() + equals + 1));
    else if (key == "--note" && equals != std::string::npos)
      args.notes[value.substr(0, equals)] = value.substr(equals + 1);
    else
      return Fail(ErrorCode::kInvalidArgument, "unknown argument '{}'", key);
  }
  args.batch = std::min<std::uint64_t>(args.batch, kBatchJobsMax);
  return args;
}

Result<void> Run(int argc, char** argv) {
  MILLRACE_TRY_ASSIGN(const Arguments args, Parse(argc, argv));
  ConfigureLog(LogLevel::kWarn, LogFormat::kText, "queue_run");
  ::signal(SIGTERM, [](int) { stop = true; });
  ::signal(SIGINT, [](int) { stop = true; });
  if (args.mode == "broker") return RunBroker(args);
  if (args.mode == "worker") return RunWorker(args);
  if (args.mode == "client") return RunClient(args);
  return Fail(ErrorCode::kInvalidArgument, "the first argument is broker, worker or client");
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  const auto done = millrace::bench::Run(argc, argv);
  if (done) return 0;
  fmt::print(stderr, "millrace_queue_run: {}\n", done.error().message);
  return 1;
}
