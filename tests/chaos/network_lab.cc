#include "tests/chaos/network_lab.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace millrace::chaos {
namespace {

constexpr Millis kToolTimeout{10'000};
constexpr std::string_view kNetwork = "10.77.0.";

Result<void> Tool(std::vector<std::string> argv, const std::string& what) {
  MILLRACE_TRY_ASSIGN(const int code, testing::RunToEnd({.argv = std::move(argv), .env = {}, .log = {}}, kToolTimeout));
  if (code != 0) return Fail(ErrorCode::kRejected, "{}: exit code {}", what, code);
  return {};
}

Result<void> Shell(const std::string& script) { return Tool({"sh", "-ec", script}, script); }

// `cut` comes before everything else, also before connection tracking. A packet for 127.0.0.1 may leave and arrive
// (route_localnet), and leaves under the host's own address.
constexpr std::string_view kTable =
    "table ip lab {"
    " chain cut { type filter hook prerouting priority -310; };"
    " chain in { type nat hook prerouting priority -100; };"
    " chain out { type nat hook output priority -100; };"
    " chain post { type nat hook postrouting priority 100; ip saddr 127.0.0.0/8 oifname != \"lo\" masquerade; };"
    " }";

constexpr std::string_view kLocalRouting =
    "for c in all default; do echo 1 > /proc/sys/net/ipv4/conf/$c/route_localnet; echo 0 > "
    "/proc/sys/net/ipv4/conf/$c/rp_filter; "
    "done; ip link set lo up; ";

}  // namespace

std::string WhyNoNetworkLab() {
  if (::geteuid() != 0) return "only root can make network namespaces";
  if (std::system("command -v nft ip nsenter >/dev/null 2>&1") != 0)
    return "nft, ip or nsenter is not installed. Run: ops/setup";
  if (std::system("unshare --net true >/dev/null 2>&1") != 0) return "this kernel or container refuses new network namespaces";
  return "";
}

Result<NetworkLab> NetworkLab::Start() {
  Fd home(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!home) return Fail(ErrorCode::kRejected, "/proc/thread-self/ns/net: {}", std::strerror(errno));
  if (::unshare(CLONE_NEWNET) != 0) return Fail(ErrorCode::kRejected, "unshare: {}", std::strerror(errno));
  NetworkLab lab(std::move(home));
  MILLRACE_TRY(
      Shell(fmt::format("{}ip link add br0 type bridge; ip addr add {}1/24 dev br0; ip link set br0 up;"
                        " echo 1 > /proc/sys/net/ipv4/conf/br0/route_localnet; nft '{}'",
                        kLocalRouting, kNetwork, kTable)));
  return lab;
}

NetworkLab::~NetworkLab() {
  if (home_ && ::setns(home_.get(), CLONE_NEWNET) != 0) std::perror("setns");
}

std::vector<std::string> NetworkLab::On(const std::string& host) const {
  const auto it = hosts_.find(host);
  if (it == hosts_.end()) return {};
  return {"nsenter", fmt::format("--net=/proc/{}/ns/net", it->second.holder.pid()), "--"};
}

// An empty host is this process's own namespace.
Result<void> NetworkLab::Nft(const std::string& host, const std::string& rules) {
  std::vector<std::string> argv = On(host);
  argv.insert(argv.end(), {"nft", rules});
  return Tool(std::move(argv), fmt::format("nft on '{}': {}", host, rules));
}

Result<void> NetworkLab::AddHost(const std::string& name) {
  const std::size_t n = hosts_.size() + 2;
  Host host{.address = fmt::format("{}{}", kNetwork, n), .holder = {}};
  MILLRACE_TRY_ASSIGN(
      host.holder,
      testing::TestProcess::Start({.argv = {"unshare", "--net", "sh", "-c", "exec sleep infinity"}, .env = {}, .log = {}}));
  const pid_t pid = host.holder.pid();
  const std::string address = host.address;
  hosts_[name] = std::move(host);
  MILLRACE_TRY(Shell(fmt::format(
      // Until the holder has a namespace of its own.
      "for i in $(seq 500); do [ \"$(readlink /proc/{0}/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ] && break; sleep 0.01; "
      "done;"
      " ip link add v{1} type veth peer name eth0 netns {0}; ip link set v{1} master br0 up;"
      " nsenter --net=/proc/{0}/ns/net sh -ec '{2}ip addr add {3}/24 dev eth0; ip link set eth0 up;"
      " echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet'",
      pid, n, kLocalRouting, address)));
  std::string rules(kTable);
  for (const Port& port : ports_)
    rules +=
        fmt::format("; add rule ip lab out ip daddr 127.0.0.1 tcp dport {0} dnat to {1}:{0}", port.port, AddressOf(port.host));
  return Nft(name, rules);
}

Result<void> NetworkLab::Publish(const std::string& host, std::uint16_t port) {
  const auto it = hosts_.find(host);
  if (it == hosts_.end()) return Fail(ErrorCode::kNotFound, "no host '{}'", host);
  ports_.push_back({host, port});
  MILLRACE_TRY(Nft(
      host, fmt::format("add rule ip lab in ip daddr {} tcp dport {} dnat to 127.0.0.1:{}", it->second.address, port, port)));
  const std::string out =
      fmt::format("add rule ip lab out ip daddr 127.0.0.1 tcp dport {0} dnat to {1}:{0}", port, it->second.address);
  MILLRACE_TRY(Nft("", out));
  for (const auto& [name, other] : hosts_)
    if (name != host) MILLRACE_TRY(Nft(name, out));
  return {};
}

// An empty host is this process's own namespace, at the bridge's address.
std::string NetworkLab::AddressOf(const std::string& host) const {
  const auto it = hosts_.find(host);
  return it == hosts_.end() ? std::string(kNetwork) + "1" : it->second.address;
}

Result<void> NetworkLab::PublishOwn(std::uint16_t port) {
  ports_.push_back({"", port});
  MILLRACE_TRY(
      Nft("", fmt::format("add rule ip lab in ip daddr {} tcp dport {} dnat to 127.0.0.1:{}", AddressOf(""), port, port)));
  for (const auto& [name, host] : hosts_)
    MILLRACE_TRY(
        Nft(name, fmt::format("add rule ip lab out ip daddr 127.0.0.1 tcp dport {0} dnat to {1}:{0}", port, AddressOf(""))));
  return {};
}

Result<void> NetworkLab::Cut(const std::string& from, const std::string& to) {
  const auto source = hosts_.find(from);
  if (source == hosts_.end() || !hosts_.contains(to)) return Fail(ErrorCode::kNotFound, "no host '{}' or '{}'", from, to);
  return Nft(to, fmt::format("add rule ip lab cut ip saddr {} drop", source->second.address));
}

Result<void> NetworkLab::Lose(int percent) {
  for (const auto& [name, host] : hosts_)
    MILLRACE_TRY(Nft(name, fmt::format("add rule ip lab cut iifname eth0 numgen random mod 100 < {} drop", percent)));
  return {};
}

Result<void> NetworkLab::Heal() {
  for (const auto& [name, host] : hosts_) MILLRACE_TRY(Nft(name, "flush chain ip lab cut"));
  return {};
}

}  // namespace millrace::chaos
