// What one message costs on its way between two threads of this process, over our ZMTP and over libzmq; and what a broker
// spends on workers that have nothing to do.
//   millrace_transport pingpong [N] [BYTES]      round trips over TCP, alternating; p50, processor time and context switches of
//   each millrace_transport idle ENDPOINT PID [N] [SECONDS]   N workers (default 1000) at the broker with that process id
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/random.h"
#include "common/wire/codec.h"
#include "common/wire/messages.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/zmq_transport.h"

namespace millrace::bench {
namespace {

using MakeTransport = std::function<Result<std::unique_ptr<wire::Transport>>()>;

constexpr int kRounds = 3;
constexpr auto kPatience = Millis{10'000};

struct Used {
  std::int64_t cpu_us, switches;
};

Used UsedByThisProcess() {
  rusage u{};
  ::getrusage(RUSAGE_SELF, &u);
  return {u.ru_utime.tv_sec * 1'000'000 + u.ru_utime.tv_usec + u.ru_stime.tv_sec * 1'000'000 + u.ru_stime.tv_usec,
          u.ru_nvcsw + u.ru_nivcsw};
}

void Echo(wire::Transport& transport, wire::ServerSocket& server, const std::atomic<bool>& stop) {
  while (!stop) {
    transport.Wait(Millis{100});
    while (auto got = server.Receive()) (void)server.Send(got->peer, std::move(got->frame));
  }
}

Result<void> PingPong(const std::string& name, const MakeTransport& make, int count, std::size_t bytes) {
  MILLRACE_TRY_ASSIGN(auto server_side, make());
  MILLRACE_TRY_ASSIGN(auto client_side, make());
  MILLRACE_TRY_ASSIGN(auto server, server_side->Bind("tcp://127.0.0.1:0"));
  MILLRACE_TRY_ASSIGN(auto client, client_side->Connect(server->Endpoint()));
  std::atomic<bool> stop{false};
  std::thread echo([&] { Echo(*server_side, *server, stop); });
  const SystemClock clock;
  const std::string frame(bytes, 'x');
  std::vector<std::int64_t> times;
  const auto trip = [&]() -> bool {
    const MonoTime begin = clock.Now();
    while (!client->Send(frame)) {
      if (clock.Now() - begin > kPatience) return false;
      client_side->Wait(Millis{1});
    }
    while (!client->Receive()) {
      if (clock.Now() - begin > kPatience) return false;
      client_side->Wait(Millis{100});
    }
    times.push_back((clock.Now() - begin).count());
    return true;
  };
  bool ok = true;
  for (int i = 0; i < count / 10 && ok; ++i) ok = trip();
  times.clear();
  const Used before = UsedByThisProcess();
  for (int i = 0; i < count && ok; ++i) ok = trip();
  const Used after = UsedByThisProcess();
  stop = true;
  server_side->Wake();
  echo.join();
  if (!ok) return Fail(ErrorCode::kTimedOut, "{}: no answer", name);
  std::ranges::sort(times);
  const auto per = [&](std::int64_t total) { return static_cast<double>(total) / count; };
  fmt::print(
      "{:<8} {:>6} round trips of {} bytes: p50 {:>4} us, p99 {:>5} us, cpu {:>6.1f} us, context switches {:>4.1f} each\n",
      name, count, bytes, times[times.size() / 2], times[times.size() * 99 / 100], per(after.cpu_us - before.cpu_us),
      per(after.switches - before.switches));
  std::fflush(stdout);
  return {};
}

Result<void> PingPongs(int count, std::size_t bytes) {
  const auto context = testing::MakeZmqContext();
  for (int round = 0; round < kRounds; ++round) {
    MILLRACE_TRY(PingPong("ours", [] { return wire::MakeZmtpTransport(); }, count, bytes));
    MILLRACE_TRY(PingPong("libzmq", [&] { return testing::MakeZmqTransport(context); }, count, bytes));
  }
  return {};
}

// Of another process.
struct Footprint {
  double cpu_s = 0;
  std::int64_t rss_kb = 0;
};

Footprint Look(int pid) {
  Footprint found;
  std::ifstream stat(fmt::format("/proc/{}/stat", pid));
  const std::string line{std::istreambuf_iterator<char>(stat), {}};
  std::istringstream rest(line.substr(std::min(line.size(), line.rfind(')') + 1)));
  std::vector<std::string> fields{std::istream_iterator<std::string>(rest), {}};
  if (fields.size() > 21) {  // from the third field of proc(5) on
    found.cpu_s = (std::stod(fields[11]) + std::stod(fields[12])) / static_cast<double>(::sysconf(_SC_CLK_TCK));
    found.rss_kb = std::stoll(fields[21]) * ::sysconf(_SC_PAGESIZE) / 1024;
  }
  return found;
}

Result<void> Idle(const std::string& endpoint, int pid, std::size_t count, std::chrono::seconds time) {
  const SystemClock clock;
  SystemRandom random;
  IdGenerator ids(clock, random);
  MILLRACE_TRY_ASSIGN(const auto transport, wire::MakeZmtpTransport());
  struct IdleWorker {
    WorkerId id;
    std::unique_ptr<wire::ClientSocket> socket;
    MonoTime next;
    bool greeted = false;
  };
  std::vector<IdleWorker> workers;
  const MonoTime start = clock.Now();
  for (std::size_t i = 0; i < count; ++i) {
    MILLRACE_TRY_ASSIGN(auto socket, transport->Connect(endpoint));
    const auto phase = Micros{1'000'000} * static_cast<Micros::rep>(i) / static_cast<Micros::rep>(count);
    workers.push_back({.id = ids.Next<WorkerId>(), .socket = std::move(socket), .next = start + Millis{500} + phase});
  }
  Footprint before;
  const MonoTime measure = start + std::chrono::seconds{5}, end = measure + time;
  bool measuring = false;
  std::uint64_t beats = 0, answers = 0;
  for (MonoTime now = start; now < end; now = clock.Now()) {
    if (!measuring && now >= measure) {
      measuring = true;
      before = Look(pid);
      beats = answers = 0;
    }
    for (IdleWorker& worker : workers) {
      while (auto frame = worker.socket->Receive()) {
        MILLRACE_TRY_ASSIGN(const wire::Message message, wire::Decode(*frame));
        const auto* beat = std::get_if<wire::BrokerBeat>(&message);
        if (beat != nullptr && beat->known) ++answers;
      }
      if (now < worker.next) continue;
      worker.next += Millis{1000};
      wire::Message message = wire::Beat{.worker = worker.id, .credit_limit = 0, .held = {}, .progress = {}, .draining = false};
      if (!worker.greeted) {
        wire::Hello hello;
        hello.worker = worker.id;
        hello.name = "idle";
        hello.kinds = {"nothing"};
        message = std::move(hello);
      }
      if (worker.socket->Send(wire::Encode(message))) {
        worker.greeted = true;
        ++beats;
      }
    }
    transport->Wait(Millis{1});
  }
  const Footprint after = Look(pid);
  const double seconds = static_cast<double>(time.count());
  fmt::print("{} idle workers, {} s: broker {:.2f} % of a core, {:.1f} MB resident; {:.0f} beats and {:.0f} answers a second\n",
             count, time.count(), (after.cpu_s - before.cpu_s) / seconds * 100, static_cast<double>(after.rss_kb) / 1024,
             static_cast<double>(beats) / seconds, static_cast<double>(answers) / seconds);
  return {};
}

Result<void> Run(const std::vector<std::string>& args) {
  const auto number = [&](std::size_t i, int otherwise) { return i < args.size() ? std::atoi(args[i].c_str()) : otherwise; };
  if (!args.empty() && args[0] == "pingpong") return PingPongs(number(1, 20'000), static_cast<std::size_t>(number(2, 100)));
  if (args.size() >= 3 && args[0] == "idle")
    return Idle(args[1], number(2, 0), static_cast<std::size_t>(number(3, 1000)), std::chrono::seconds{number(4, 30)});
  return Fail(ErrorCode::kInvalidArgument, "usage: millrace_transport pingpong [N] [BYTES] | idle ENDPOINT PID [N] [SECONDS]");
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  const auto done = millrace::bench::Run({argv + 1, argv + argc});
  if (done) return 0;
  fmt::print(stderr, "{}\n", done.error().message);
  return 1;
}
