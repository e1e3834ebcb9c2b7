// Any bytes as what a Redis server answers. A thread of this process plays the server on a unix socket: the driver is used
// as it is, with its own reader. What it reads as a reply is read as the same when it is written and sent again, byte by byte.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "common/drivers/redis.h"
#include "tests/fuzz/accepted.h"

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
  // Answers the PING of one connection, then one pipeline with `bytes`, so many at a time, and hangs up.
  void Serve(const std::string& bytes, std::size_t piece) const {
    const int peer = ::accept(fd_, nullptr, nullptr);
    char buffer[4096];
    const std::string pong = "+PONG\r\n";
    for (const std::string* answer : {&pong, &bytes}) {
      if (::recv(peer, buffer, sizeof buffer, 0) <= 0) break;
      for (std::size_t at = 0; at < answer->size();) {
        const ssize_t sent = ::send(peer, answer->data() + at, std::min(piece, answer->size() - at), MSG_NOSIGNAL);
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

constexpr std::size_t kWhole = 1u << 30, kPieceSmall = 1, kSmallBytes = 4096;

template <class T>
void CheckAs(const millrace::Result<T>& read, bool fits, const Reply& reply) {
  if (read.has_value() != fits) std::abort();
  if (fits) return;
  const auto code =
      reply.kind == Reply::Kind::kError ? millrace::redis::ClassifyErrorReply(reply.text) : millrace::ErrorCode::kCorrupt;
  if (read.error().code != code || read.error().message.find("COMMAND") == std::string::npos) std::abort();
}

void Use(const Reply& reply) {
  using Kind = Reply::Kind;
  const bool text = reply.kind == Kind::kString || reply.kind == Kind::kStatus, nil = reply.kind == Kind::kNil;
  CheckAs(reply.AsInteger("COMMAND"), reply.kind == Kind::kInteger, reply);
  CheckAs(reply.AsString("COMMAND"), text, reply);
  CheckAs(reply.AsOptionalString("COMMAND"), text || nil, reply);
  CheckAs(reply.AsOk("COMMAND"), reply.kind == Kind::kStatus, reply);
  CheckAs(reply.AsArray("COMMAND"), reply.kind == Kind::kArray || nil, reply);
  for (const Reply& element : reply.elements) Use(element);
}

std::string Encode(const Reply& reply) {
  switch (reply.kind) {
    case Reply::Kind::kNil: return "$-1\r\n";
    case Reply::Kind::kStatus: return "+" + reply.text + "\r\n";
    case Reply::Kind::kError: return "-" + reply.text + "\r\n";
    case Reply::Kind::kInteger: return ":" + std::to_string(reply.integer) + "\r\n";
    case Reply::Kind::kString: return "$" + std::to_string(reply.text.size()) + "\r\n" + reply.text + "\r\n";
    case Reply::Kind::kArray: break;
  }
  std::string out = "*" + std::to_string(reply.elements.size()) + "\r\n";
  for (const Reply& element : reply.elements) out += Encode(element);
  return out;
}

bool Same(const Reply& a, const Reply& b) {
  return a.kind == b.kind && a.integer == b.integer && a.text == b.text &&
         std::ranges::equal(a.elements, b.elements, [](const Reply& x, const Reply& y) { return Same(x, y); });
}

// The replies of a pipeline of two commands to which the server answers `bytes`; those that are none are left out.
std::vector<Reply> Ask(const std::string& bytes, std::size_t piece) {
  static const Server server;
  static const millrace::SystemClock clock;
  const auto endpoint = millrace::redis::ParseEndpoint(server.endpoint());
  if (!endpoint) std::abort();
  std::jthread answers([&] { server.Serve(bytes, piece); });
  auto connection =
      millrace::redis::Connection::Connect(*endpoint, {.reply_bytes_max = 1u << 20}, clock.Now() + std::chrono::seconds{10});
  if (!connection) std::abort();
  connection->Append({"ECHO", "a"});
  connection->Append({"ECHO", "b"});
  const auto flushed = connection->Flush(clock.Now() + std::chrono::seconds{10});
  if (flushed.size() != 2 || (flushed[1] && !flushed[0])) std::abort();
  std::vector<Reply> replies;
  for (const auto& reply : flushed) {
    if (reply)
      replies.push_back(*reply);
    else if (reply.error().code != millrace::ErrorCode::kMaybeApplied &&
             reply.error().code != millrace::ErrorCode::kUnavailable)
      std::abort();
  }
  return replies;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::vector<Reply> replies = Ask(std::string(reinterpret_cast<const char*>(data), size), kWhole);
  if (replies.empty()) return 0;
  ++millrace::fuzz::accepted;
  std::string written;
  for (const Reply& reply : replies) {
    Use(reply);
    written += Encode(reply);
  }
  const std::vector<Reply> again = Ask(written, written.size() <= kSmallBytes ? kPieceSmall : kWhole);
  if (!std::ranges::equal(again, replies, Same)) std::abort();
  return 0;
}
