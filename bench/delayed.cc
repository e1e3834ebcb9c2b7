// What delayed jobs cost: the resident memory of broker and worker before and after so many of them are accepted, and how late
// due ones leave while the others wait. Needs MILLRACE_TEST_REDIS and MILLRACE_TEST_POSTGRES (a database and a key prefix of
// its own, removed afterwards).
//
//   millrace_delayed [JOBS] [DUE] [redis|ledger]
//
// The broker is the product's, in a process of its own; so is the worker (worker/worker.h), which takes no jobs: it is there
// to be measured. The due jobs go to a second worker inside this process, which speaks the wire protocol and notes when each
// grant arrives. JOBS (default 1,000,000) are due in a day; DUE (default 2,000) are due one after the other, 2 ms apart. A
// warm-up is there so that buffers have grown once and what it leaves is given back: a tenth of JOBS (20,000 at least) that end
// before anything is measured, then as many that are due in a day. Memory is read when it has stood still for 15 s while a few
// jobs go on. Prints JSON; exit code 1 when memory changed by more than a tenth (less is no better: the warm-up's was counted),
// the p99 of the lateness is above 100 ms, a due job did not leave, one was granted before its time, or a job was granted
// twice; 3 when nothing could be measured.
#include <fmt/format.h>
#ifdef MILLRACE_JEMALLOC
#include <jemalloc/jemalloc.h>
#endif
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "broker/broker.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/drivers/postgres.h"
#include "common/drivers/redis.h"
#include "common/queue/redis_queue.h"
#include "common/wire/messages.h"
#include "common/wire/zmtp_transport.h"
#include "worker/worker.h"

namespace millrace::bench {
namespace {

constexpr std::size_t kBatch = 1000, kOutstanding = 8;
constexpr std::uint64_t kWarmUpMin = 20'000;  // more than twice what is under way
constexpr std::size_t kPayloadBytes = 100;
constexpr Millis kGap{2};

struct Setting {
  std::string redis, server, database, dsn, prefix, front, back;
  Durability durability = Durability::kLedger;
};

std::atomic<bool> stop{false};

Result<void> RunBroker(const Setting& s) {
  const SystemClock clock;
  SystemRandom random;
  IdGenerator ids(clock, random);
  BrokerOptions options;
  options.owner = ids.Next<OwnerId>();
  options.front_endpoints = {s.front};
  options.back_endpoints = {s.back};
  options.clock = &clock;
  options.random = &random;
  options.make_ledger = [&]() -> Result<std::unique_ptr<Ledger>> {
    MILLRACE_TRY_ASSIGN(
        auto ledger,
        OpenPostgresLedger(
            {.dsn = s.dsn, .clock = &clock, .writer = ids.Next<AuditWriterId>(), .shard_count = 1, .actor = "bench"},
            clock.Now() + Millis{10'000}));
    MILLRACE_TRY(ledger->Migrate(clock.Now() + Millis{10'000}));
    return ledger;
  };
  options.make_queue = [&]() -> Result<std::unique_ptr<JobQueue>> {
    MILLRACE_TRY_ASSIGN(auto queue, RedisQueue::Open({.endpoint = s.redis, .prefix = s.prefix}, clock.Now() + Millis{10'000}));
    return std::unique_ptr<JobQueue>(std::move(queue));
  };
  const auto names = wire::MakeLocalNames();
  options.make_transport = [&] { return wire::MakeZmtpTransport(names); };
  Broker broker(std::move(options));
  MILLRACE_TRY(broker.Start());
  while (!stop) std::this_thread::sleep_for(Millis{20});
  broker.RequestStop();
  broker.Join();
  return {};
}

Result<void> RunIdleWorker(const Setting& s) {
  const SystemClock clock;
  SystemRandom random;
  IdGenerator ids(clock, random);
  MILLRACE_TRY_ASSIGN(auto transport, wire::MakeZmtpTransport());
  worker::WorkerOptions options;
  options.name = "measured";
  options.id = ids.Next<WorkerId>();
  options.brokers = {s.back};
  options.concurrency = 4;
  options.kinds = {"command"};  // the jobs here are of another kind
  worker::Worker worker(options, clock, std::move(transport));
  std::thread watch([&] {
    while (!stop) std::this_thread::sleep_for(Millis{20});
    worker.RequestDrain();
  });
  auto ran = worker.Run();
  stop = true;
  watch.join();
  return ran;
}

// The allocator's thread that gives memory back (client/cli/allocator.cc) is not in a forked process; without it what the
// warm-up left would go at some later time, and hide what grew.
void StartAllocatorsThread() {
#ifdef MILLRACE_JEMALLOC
  bool on = true;
  (void)mallctl("background_thread", nullptr, nullptr, &on, sizeof on);
#endif
}

template <class Body>
pid_t Spawn(Body body) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  StartAllocatorsThread();
  ::signal(SIGTERM, [](int) { stop = true; });
  const Result<void> ran = body();
  if (!ran) fmt::print(stderr, "{}\n", ran.error().message);
  ::_exit(ran ? 0 : 1);
}

long RssKb(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("VmRSS:")) return std::atol(line.c_str() + 6);
  return 0;
}

class Line {
 public:
  explicit Line(const std::string& endpoint) : transport_(wire::MakeZmtpTransport().value()) {
    socket_ = transport_->Connect(endpoint).value();
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
  template <class Take>
  Result<void> Receive(Millis timeout, Take take) {
    transport_->Wait(timeout);
    while (auto frame = socket_->Receive()) {
      MILLRACE_TRY_ASSIGN(const wire::Message message, wire::Decode(*frame));
      MILLRACE_TRY(take(message));
    }
    return {};
  }

 private:
  SystemClock clock_;
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ClientSocket> socket_;
};

class Bench {
 public:
  explicit Bench(const Setting& s) : setting_(s), client_(s.front), worker_(s.back), me_(ids_.Next<WorkerId>()) {}

  // `count` jobs, the i-th of which is due at at(i).
  template <class At>
  Result<void> Submit(std::uint64_t count, const std::string& kind, At at, bool note) {
    std::uint64_t made = 0, accepted = 0, waiting = 0;
    while (accepted < count) {
      while (waiting < kOutstanding && made < count) {
        wire::SubmitJobs submit{.request = ++request_, .jobs = {}};
        for (std::size_t i = 0; i < kBatch && made < count; ++i, ++made) {
          JobSpec job;
          job.id = ids_.Next<JobId>();
          job.kind = kind;
          job.payload.assign(kPayloadBytes, static_cast<char>('a' + made % 26));
          job.run_at = at(made);
          job.options.durability = setting_.durability;
          if (note) due_[job.id] = *job.run_at;
          submit.jobs.push_back(std::move(job));
        }
        MILLRACE_TRY(client_.Send(submit));
        ++waiting;
      }
      MILLRACE_TRY(client_.Receive(Millis{20}, [&](const wire::Message& message) -> Result<void> {
        if (const auto* problem = std::get_if<wire::Problem>(&message))
          return Fail(ErrorCode::kRejected, "{}: {}", problem->code, problem->message);
        if (const auto* reply = std::get_if<wire::SubmitReply>(&message)) accepted += reply->accepted.size(), --waiting;
        return {};
      }));
      MILLRACE_TRY(Serve(Millis{0}));
    }
    return {};
  }

  // The worker's side: takes what comes, reports success at once.
  Result<void> Serve(Millis timeout) {
    if (clock_.Now() >= next_beat_) {
      next_beat_ = clock_.Now() + kHeartbeatInterval;
      const std::uint64_t limit = taken_ + 5000;
      if (known_) {
        MILLRACE_TRY(
            worker_.Send(wire::Beat{.worker = me_, .credit_limit = limit, .held = {}, .progress = {}, .draining = false}));
      } else {
        taken_ = 0;
        MILLRACE_TRY(worker_.Send(wire::Hello{.worker = me_,
                                              .name = "bench",
                                              .queues = {},
                                              .kinds = {"due", "warm"},
                                              .roots = {},
                                              .concurrency = 5000,
                                              .credit_limit = 5000,
                                              .held = {}}));
      }
    }
    return worker_.Receive(timeout, [&](const wire::Message& message) -> Result<void> {
      if (std::holds_alternative<wire::Welcome>(message)) known_ = true;
      if (const auto* beat = std::get_if<wire::BrokerBeat>(&message)) known_ = beat->known;
      const auto* grant = std::get_if<wire::Grant>(&message);
      if (grant == nullptr) return {};
      const WallTime now = clock_.WallNow();
      wire::Ended ended{.worker = me_, .credit_limit = 0, .reports = {}};
      for (const auto& job : grant->jobs) {
        ++taken_;
        if (!granted_.insert(job.id).second) {
          ++repeated_;
        } else if (const auto due = due_.find(job.id); due != due_.end()) {
          late_ms_.push_back(static_cast<double>((now - due->second).count()) / 1000);
          due_.erase(due);
        } else {
          ++others_;
        }
        AttemptReport report;
        report.job = job.id;
        report.token = job.token;
        report.end = AttemptEnd::kSucceeded;
        report.started_at = report.finished_at = now;
        ended.reports.push_back(std::move(report));
      }
      ended.credit_limit = taken_ + 5000;
      return worker_.Send(ended);
    });
  }

  Result<void> ServeFor(Millis time) {
    for (const MonoTime end = clock_.Now() + time; clock_.Now() < end;) {
      MILLRACE_TRY(Serve(Millis{20}));
      MILLRACE_TRY(client_.Receive(Millis{0}, [](const wire::Message&) -> Result<void> { return {}; }));  // answers its pings
    }
    return {};
  }

  SystemClock clock_;
  std::map<JobId, WallTime> due_;  // not granted yet
  std::vector<double> late_ms_;
  std::uint64_t others_ = 0;  // granted, of the warm-up
  std::uint64_t repeated_ = 0;

 private:
  const Setting& setting_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  Line client_, worker_;
  WorkerId me_;
  std::unordered_set<JobId> granted_;
  bool known_ = false;
  std::uint64_t taken_ = 0, request_ = 0;
  MonoTime next_beat_{};
};

// The broker keeps the ids of what it accepted for 6 to 12 s, to know a repeated submit (broker/recent_ids.h).
constexpr std::size_t kStillFor = 15;  // looks, one a second
constexpr long kStillPercent = 2;      // between the largest and the smallest of them
constexpr Millis kLook{1000}, kStillTimeout{300'000};
constexpr std::uint64_t kGoOn = 10;  // jobs between two looks
constexpr double kLateMaxMs = 100;   // p99

// In kB, of the broker and of the worker.
struct Memory {
  long broker = 0, worker = 0;
};

bool StandsStill(const std::vector<long>& looks) {
  if (looks.size() < kStillFor) return false;
  const auto [least, most] = std::minmax_element(looks.end() - kStillFor, looks.end());
  return *most - *least <= *least * kStillPercent / 100;
}

Result<Memory> WhenItStandsStill(Bench& bench, pid_t broker, pid_t worker) {
  std::vector<long> of_broker, of_worker;
  for (const MonoTime give_up = bench.clock_.Now() + kStillTimeout; bench.clock_.Now() < give_up;) {
    const WallTime now = bench.clock_.WallNow();
    MILLRACE_TRY(bench.Submit(kGoOn, "warm", [&](std::uint64_t) { return now; }, false));
    MILLRACE_TRY(bench.ServeFor(kLook));
    of_broker.push_back(RssKb(broker));
    of_worker.push_back(RssKb(worker));
    if (StandsStill(of_broker) && StandsStill(of_worker)) return Memory{.broker = of_broker.back(), .worker = of_worker.back()};
  }
  return Fail(ErrorCode::kTimedOut, "the memory of broker and worker does not stand still: {} and {} kB at last",
              of_broker.back(), of_worker.back());
}

bool WithinATenth(long before, long after) { return std::labs(after - before) <= before / 10; }

Result<bool> Measure(const Setting& s, std::uint64_t jobs, std::uint64_t due, pid_t broker, pid_t worker) {
  Bench bench(s);
  const WallTime now = bench.clock_.WallNow();
  const std::uint64_t warm_up = std::max(jobs / 10, kWarmUpMin);
  MILLRACE_TRY(bench.Submit(warm_up, "warm", [&](std::uint64_t) { return now; }, false));
  while (bench.others_ < warm_up) MILLRACE_TRY(bench.Serve(Millis{20}));
  const auto in_a_day = [&](std::uint64_t i) { return now + std::chrono::hours{24} + Micros{i}; };
  MILLRACE_TRY(bench.Submit(warm_up, "later", in_a_day, false));
  MILLRACE_TRY_ASSIGN(const Memory before, WhenItStandsStill(bench, broker, worker));
  const MonoTime start = bench.clock_.Now();
  MILLRACE_TRY(bench.Submit(jobs, "later", in_a_day, false));
  const double seconds = static_cast<double>((bench.clock_.Now() - start).count()) / 1e6;
  MILLRACE_TRY_ASSIGN(const Memory after, WhenItStandsStill(bench, broker, worker));
  const WallTime first = bench.clock_.WallNow() + Millis{4000};
  MILLRACE_TRY(bench.Submit(due, "due", [&](std::uint64_t i) { return first + kGap * static_cast<std::int64_t>(i); }, true));
  const MonoTime give_up = bench.clock_.Now() + Millis{20'000} + kGap * static_cast<std::int64_t>(due);
  while (!bench.due_.empty() && bench.clock_.Now() < give_up) MILLRACE_TRY(bench.Serve(Millis{20}));
  std::vector<double>& late = bench.late_ms_;
  std::ranges::sort(late);
  const auto at = [&](double p) {
    return late.empty() ? -1.0 : late[static_cast<std::size_t>(p * static_cast<double>(late.size() - 1))];
  };
  const auto early = static_cast<std::size_t>(std::ranges::lower_bound(late, 0.0) - late.begin());
  const bool flat = WithinATenth(before.broker, after.broker) && WithinATenth(before.worker, after.worker);
  const bool in_time = !late.empty() && at(0.99) <= kLateMaxMs;
  fmt::print(
      "{{\"delayed\": {}, \"durability\": \"{}\", \"accepted_per_s\": {:.0f}, \"broker_rss_kb\": [{}, {}], \"worker_rss_kb\": "
      "[{}, {}], \"due\": {}, \"left\": {}, \"early\": {}, \"repeated\": {}, \"late_ms\": {{\"p50\": {:.1f}, \"p99\": {:.1f}, "
      "\"max\": {:.1f}}}, "
      "\"memory_within_a_tenth\": {}, \"in_time\": {}}}\n",
      jobs, s.durability == Durability::kRedis ? "redis" : "ledger", static_cast<double>(jobs) / seconds, before.broker,
      after.broker, before.worker, after.worker, due, late.size(), early, bench.repeated_, at(0.5), at(0.99), at(1), flat,
      in_time);
  return flat && in_time && early == 0 && bench.repeated_ == 0 && bench.due_.empty();
}

Result<void> DropKeys(const Setting& s) {
  const SystemClock clock;
  const MonoTime deadline = clock.Now() + Millis{60'000};
  MILLRACE_TRY_ASSIGN(const auto endpoint, redis::ParseEndpoint(s.redis));
  MILLRACE_TRY_ASSIGN(auto connection, redis::Connection::Connect(endpoint, {}, deadline));
  MILLRACE_TRY_ASSIGN(const auto keys, connection.Call({"KEYS", "{" + s.prefix + ":*"}, deadline));
  MILLRACE_TRY_ASSIGN(const auto items, keys.AsArray("keys"));
  for (const auto& key : items) {
    MILLRACE_TRY_ASSIGN(const std::string_view name, key.AsString("key"));
    MILLRACE_TRY(connection.Call({"UNLINK", name}, deadline));
  }
  return {};
}

int Main(int argc, char** argv) {
  const char *redis = std::getenv("MILLRACE_TEST_REDIS"), *server = std::getenv("MILLRACE_TEST_POSTGRES");
  if (redis == nullptr || server == nullptr) {
    fmt::print(stderr, "MILLRACE_TEST_REDIS and MILLRACE_TEST_POSTGRES must be set\n");
    return 2;
  }
  ConfigureLog(LogLevel::kWarn, LogFormat::kText, "delayed");
  const std::uint64_t jobs = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1'000'000;
  const std::uint64_t due = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 2'000;
  Setting s{.redis = redis,
            .server = server,
            .database = "mr_delayed_" + std::to_string(::getpid()),
            .dsn = {},
            .prefix = {},
            .front = {},
            .back = {}};
  if (argc > 3 && std::string(argv[3]) == "redis") s.durability = Durability::kRedis;
  s.dsn = s.server + " dbname=" + s.database;
  s.prefix = s.database;
  s.front = fmt::format("ipc:///tmp/{}-front", s.database);
  s.back = fmt::format("ipc:///tmp/{}-back", s.database);
  const SystemClock clock;
  PgOptions options;
  options.dsn = s.server;
  const auto admin = PgConnection::Connect(options, clock, clock.Now() + Millis{10'000});
  if (!admin || !(*admin)->Exec("create database " + s.database, clock.Now() + Millis{30'000})) return 2;
  const pid_t broker = Spawn([&] { return RunBroker(s); });
  const pid_t worker = Spawn([&] { return RunIdleWorker(s); });
  const auto good = Measure(s, jobs, due, broker, worker);
  if (!good) fmt::print(stderr, "{}\n", good.error().message);
  for (const pid_t child : {worker, broker}) {
    ::kill(child, SIGTERM);
    ::waitpid(child, nullptr, 0);
  }
  (void)(*admin)->Exec("drop database if exists " + s.database + " with (force)", clock.Now() + Millis{60'000});
  if (auto dropped = DropKeys(s); !dropped) fmt::print(stderr, "keys {}*: {}\n", s.prefix, dropped.error().message);
  for (const std::string& endpoint : {s.front, s.back}) ::unlink(endpoint.substr(6).c_str());
  if (!good) return 3;
  return *good ? 0 : 1;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) { return millrace::bench::Main(argc, argv); }
