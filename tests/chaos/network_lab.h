// A network of namespaces in which every process of a cluster is a host of its own, joined by a bridge, and whose links can be
// cut one way or both and lose packets. Everything is anonymous and belongs to the test process: when that ends, however it
// ends, nothing is left.
//
// The processes go on talking to 127.0.0.1: a published port is translated on its way out of the one namespace and into the
// other (nftables), so nothing in Millrace knows of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/base/fd.h"
#include "common/base/result.h"
#include "tests/support/process.h"

namespace millrace::chaos {

// Why this machine cannot do it (not root, no `nft`, no `ip`, kernel without namespaces); empty: it can.
std::string WhyNoNetworkLab();

// Not thread-safe.
class NetworkLab {
 public:
  // Moves the calling thread, and every thread and process that it starts from now on, into a new network namespace with a
  // bridge. Call it on the main thread before there are others.
  static Result<NetworkLab> Start();
  NetworkLab(NetworkLab&&) = default;
  // The calling thread goes back to where it came from: what is published here would be in the way of whoever comes next.
  ~NetworkLab();

  // A new host; `name` is up to the caller.
  Result<void> AddHost(const std::string& name);
  // 127.0.0.1:port of all others, and of this process, is that of `host` from now on.
  Result<void> Publish(const std::string& host, std::uint16_t port);
  // The same for a port of this process.
  Result<void> PublishOwn(std::uint16_t port);
  // What to put before a command that is to run on `host`.
  std::vector<std::string> On(const std::string& host) const;

  // Packets of `from` to `to` are dropped; the other way they go on. kNotFound: no such host.
  Result<void> Cut(const std::string& from, const std::string& to);
  // Each host drops so many percent of what arrives, at random.
  Result<void> Lose(int percent);
  Result<void> Heal();  // no cuts, no loss

 private:
  struct Host {
    std::string address;
    testing::TestProcess holder;  // keeps the namespace
  };
  struct Port {
    std::string host;
    std::uint16_t port = 0;
  };
  explicit NetworkLab(Fd home) : home_(std::move(home)) {}
  Result<void> Nft(const std::string& host, const std::string& rules);
  std::string AddressOf(const std::string& host) const;

  Fd home_;  // the namespace before
  std::map<std::string, Host> hosts_;
  std::vector<Port> ports_;
};

}  // namespace millrace::chaos
