// One DEALER socket to a broker, for one thread.
#pragma once

#include <memory>
#include <optional>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/wire/messages.h"
#include "common/wire/transport.h"

namespace millrace::bench {

class Line {
 public:
  static Result<Line> Connect(const std::string& endpoint);
  // Waits, at most 30 s, for the connection or for room in the socket's buffer.
  Result<void> Send(const wire::Message& message);
  // Without waiting. kUnavailable: not connected; kLimit: no room.
  Result<void> TrySend(const wire::Message& message) { return socket_->Send(wire::Encode(message)); }
  // Whatever has arrived, decoded; empty when nothing has. kInvalidArgument: not a message.
  Result<std::optional<wire::Message>> Receive();
  // Until something can be received, `extra_fd` is readable, or the timeout passes.
  void Wait(Millis timeout, int extra_fd = -1) { transport_->Wait(timeout, extra_fd); }

 private:
  Line(std::unique_ptr<wire::Transport> transport, std::unique_ptr<wire::ClientSocket> socket)
      : transport_(std::move(transport)), socket_(std::move(socket)) {}
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ClientSocket> socket_;  // destroyed before its transport
  SystemClock clock_;
};

// Wakes Line::Wait at an instant, with the kernel's resolution instead of milliseconds.
class Alarm {
 public:
  Alarm();
  ~Alarm();
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;
  int fd() const { return fd_; }
  void Set(MonoTime at);  // the fd is readable from then on, until the next Set or Clear
  void Clear();           // it is not readable any more

 private:
  int fd_;
};

}  // namespace millrace::bench
