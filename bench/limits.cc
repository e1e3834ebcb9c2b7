// What this machine can do at best on the way of a job: a message between two processes over TCP, a synced write, a round trip
// to Redis. Nothing of Millrace is in it. bench/figures prints it with every table.
//   millrace_limits [REDIS_HOST:PORT]     JSON, µs; `alone`: one each 10 ms, when both sides sleep and caches are cold;
//                                         `sustained`: about a thousand a second for 20 s
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/base/fd.h"

namespace millrace {
namespace {

constexpr Micros kNoPause{0}, kAlone{10'000};
constexpr std::size_t kBytes = 100;

struct Spread {
  double p50 = 0, p99 = 0, p999 = 0, max = 0;
};

Spread SpreadOf(std::vector<double> us) {
  std::ranges::sort(us);
  return {.p50 = us[us.size() / 2], .p99 = us[us.size() * 99 / 100], .p999 = us[us.size() * 999 / 1000], .max = us.back()};
}

// Calls `once` so often, with a pause before each. Ends the program when it fails: a limit of 0 would be a lie.
Spread Measure(std::size_t times, Micros pause, const std::function<bool()>& once) {
  const SystemClock clock;
  std::vector<double> us;
  for (std::size_t i = 0; i < times; ++i) {
    if (pause.count() > 0) std::this_thread::sleep_for(pause);
    const MonoTime start = clock.Now();
    if (!once()) {
      fmt::print(stderr, "millrace_limits: {}\n", std::strerror(errno));
      std::exit(1);
    }
    us.push_back(static_cast<double>(Micros{clock.Now() - start}.count()));
  }
  return SpreadOf(std::move(us));
}

bool ReadAll(int fd, char* to, std::size_t n) {
  while (n > 0) {
    const ssize_t got = ::read(fd, to, n);
    if (got <= 0) return false;
    to += got;
    n -= static_cast<std::size_t>(got);
  }
  return true;
}

void NoDelay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

Fd DialTcp(const sockaddr_in& to) {
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) return Fd();
  NoDelay(fd.get());
  return fd;
}

// A process that sends back what it gets, until its peer closes.
Fd Echo() {
  const Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&at), size) != 0 || ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size) != 0)
    return Fd();
  if (::fork() == 0) {
    const Fd peer(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    NoDelay(peer.get());
    std::array<char, kBytes> bytes{};
    while (ReadAll(peer.get(), bytes.data(), bytes.size()))
      if (::write(peer.get(), bytes.data(), bytes.size()) < 0) break;
    ::_exit(0);
  }
  return DialTcp(at);
}

bool RoundTrip(int fd) {
  std::array<char, kBytes> bytes{};
  return ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()) &&
         ReadAll(fd, bytes.data(), bytes.size());
}

bool Ping(int fd) {
  constexpr std::string_view kPing = "PING\r\n";
  std::array<char, 7> pong{};
  return ::write(fd, kPing.data(), kPing.size()) == static_cast<ssize_t>(kPing.size()) && ReadAll(fd, pong.data(), pong.size());
}

std::string Json(const char* name, const Spread& often, const Spread& alone) {
  return fmt::format("\"{}\": {{\"p50_us\": {:.0f}, \"p99_us\": {:.0f}, \"alone_p50_us\": {:.0f}, \"alone_p99_us\": {:.0f}}}",
                     name, often.p50, often.p99, alone.p50, alone.p99);
}

int Main(int argc, char** argv) {
  std::string out;
  {
    const Fd peer = Echo();
    const auto trip = [&] { return RoundTrip(peer.get()); };
    const Spread often = Measure(5'000, kNoPause, trip), alone = Measure(300, kAlone, trip);
    out = Json("tcp_round_trip", often, alone);
  }
  ::wait(nullptr);
  {
    std::string path = "limits.XXXXXX";  // in the folder it is started in: that disk
    const Fd file(::mkostemp(path.data(), O_CLOEXEC));
    ::unlink(path.c_str());
    const std::string page(8192, 'x');
    constexpr off_t kPages = 512;
    off_t next = 0;
    // As a log is written: over space that the file has already.
    const auto write = [&] {
      const off_t at = next++ % kPages * static_cast<off_t>(page.size());
      return ::pwrite(file.get(), page.data(), page.size(), at) == static_cast<ssize_t>(page.size());
    };
    const auto sync = [&] { return write() && ::fdatasync(file.get()) == 0; };
    while (next < kPages && write()) {
    }
    ::fsync(file.get());
    const Spread often = Measure(300, kNoPause, sync), alone = Measure(200, kAlone, sync);
    out += ", " + Json("write_and_fdatasync_8k", often, alone);
    const Spread sustained = Measure(20'000, Micros{700}, sync);
    out +=
        fmt::format(R"(, "sustained_fdatasync": {{"p50_us": {:.0f}, "p99_us": {:.0f}, "p999_us": {:.0f}, "max_us": {:.0f}}})",
                    sustained.p50, sustained.p99, sustained.p999, sustained.max);
  }
  if (const char* colon = argc > 1 ? std::strrchr(argv[1], ':') : nullptr; colon != nullptr) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<std::uint16_t>(std::atoi(colon + 1)));
    ::inet_pton(AF_INET, std::string(static_cast<const char*>(argv[1]), colon).c_str(), &at.sin_addr);
    const Fd redis = DialTcp(at);
    const auto ping = [&] { return Ping(redis.get()); };
    const Spread often = Measure(5'000, kNoPause, ping), alone = Measure(300, kAlone, ping);
    out += ", " + Json("redis_ping", often, alone);
  }
  fmt::print("{{{}}}\n", out);
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::Main(argc, argv); }
