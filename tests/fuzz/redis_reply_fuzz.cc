// Any bytes as what a Redis server answers. A thread of this process plays the server on a unix socket: the driver is used
// as it is, with its own reader.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "common/drivers/redis.h"

namespace {

using millrace::redis::Reply;

class Server {
 public:
  Server()
      : path_("/tmp/millrace_redis_fuzz_" + std::to_string(::getpid())), fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.c_str(), path_.size());
    ::unlink(path_.c_str());
    if (::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::listen(fd_, 8) != 0) std::abort();
  }
  ~Server() {
    ::close(fd_);
    ::unlink(path_.c_str());
  }
  // Answers the PING of one connection, then one pipeline with `bytes`, and hangs up.
  void Serve(const std::string& bytes) const {
    const int peer = ::accept(fd_, nullptr, nullptr);
    char buffer[4096];
    const std::string pong = "+PONG\r\n";
    for (const std::string* answer : {&pong, &bytes}) {
      if (::recv(peer, buffer, sizeof buffer, 0) <= 0) break;
      for (std::size_t at = 0; at < answer->size();) {
        const ssize_t sent = ::send(peer, answer->data() + at, answer->size() - at, MSG_NOSIGNAL);
        if (sent <= 0) break;
        at += static_cast<std::size_t>(sent);
      }
    }
    ::close(peer);
  }
  std::string endpoint() const { return "unix:" + path_; }

 private:
  std::string path_;
  int fd_;
};

void Use(const Reply& reply) {
  static_cast<void>(reply.AsInteger("x"));
  static_cast<void>(reply.AsString("x"));
  static_cast<void>(reply.AsOptionalString("x"));
  static_cast<void>(reply.AsOk("x"));
  static_cast<void>(millrace::redis::ClassifyErrorReply(reply.text));
  if (const auto elements = reply.AsArray("x"); elements && elements->size() < 1000)
    for (const Reply& element : *elements) Use(element);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Server server;
  static const millrace::SystemClock clock;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const auto endpoint = millrace::redis::ParseEndpoint(server.endpoint());
  if (!endpoint) std::abort();
  std::jthread answers([&] { server.Serve(bytes); });
  auto connection =
      millrace::redis::Connection::Connect(*endpoint, {.reply_bytes_max = 1u << 20}, clock.Now() + std::chrono::seconds{10});
  if (!connection) std::abort();
  connection->Append({"ECHO", "a"});
  connection->Append({"ECHO", "b"});
  const auto replies = connection->Flush(clock.Now() + std::chrono::seconds{10});
  if (replies.size() != 2) std::abort();
  for (const auto& reply : replies) {
    if (reply)
      Use(*reply);
    else if (reply.error().code != millrace::ErrorCode::kMaybeApplied &&
             reply.error().code != millrace::ErrorCode::kUnavailable)
      std::abort();
  }
  return 0;
}
