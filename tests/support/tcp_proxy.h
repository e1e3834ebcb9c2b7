// A TCP proxy that loses things: stands between a client and a server of a test, forwards, and on demand drops the reply of
// a request that the server has carried out, goes silent, delays, drips or cuts. One thread of its own does all of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::testing {

struct TcpProxyOptions {
  std::string listen_host = "127.0.0.1";
  std::uint16_t listen_port = 0;  // 0: any free one
  std::string upstream_host = "127.0.0.1";
  std::uint16_t upstream_port = 0;
  std::uint64_t seed = 1;  // of the choices of DropReply
};

// Which bytes are not read any more. What was read before still arrives; connections stay open (half-open to both ends), new
// ones are taken and treated the same.
enum class Silence : std::uint8_t { kNone, kToServer, kToClient, kBoth };

struct TcpProxyCounts {
  std::uint64_t connections = 0, replies_dropped = 0, cuts = 0, to_server_bytes = 0, to_client_bytes = 0;
};

// Thread-safe. Faults hold from the thread's next turn on, which every setter waits for.
class TcpProxy {
 public:
  // kUnavailable: the address cannot be listened on. The server need not be there: a client's connection is closed while it
  // is not.
  static Result<std::unique_ptr<TcpProxy>> Start(const TcpProxyOptions& options);
  ~TcpProxy();
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;

  std::uint16_t port() const;

  // From now on, one in `one_in` of the server's packets that hold `pattern` is swallowed and its connection is cut (reset
  // to the client), `count` times in all. What the server did to answer so is done.
  void DropReply(std::string pattern, std::uint64_t one_in, std::uint64_t count);
  // The same for the first bytes that the server sends after a request that holds `pattern`.
  void DropReplyTo(std::string pattern, std::uint64_t one_in, std::uint64_t count);
  // Cuts a connection once the server has sent it `bytes`, in the middle of whatever that is. 0: never.
  void CutAfter(std::uint64_t bytes);
  void Go(Silence silence);
  // The connections that are there now stay open and silent for ever to their clients; the server's ends are closed. New ones
  // are served. As after the loss of a firewall's or a load balancer's state.
  void Strand();
  void Delay(Millis each_way);          // every byte, in both directions
  void Drip(std::size_t bytes_per_ms);  // at most so many per connection and direction; 0: no limit
  void Cut();                           // resets all connections there are; new ones are served
  void Heal();                          // all of the above off; bytes held back arrive

  TcpProxyCounts counts() const;

 private:
  class Loop;
  explicit TcpProxy(std::unique_ptr<Loop> loop);
  std::unique_ptr<Loop> loop_;
};

}  // namespace millrace::testing
