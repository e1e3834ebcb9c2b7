#include "client/bench/line.h"

#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>

#include "common/wire/zmtp_transport.h"

namespace millrace::bench {
namespace {

constexpr Millis kSendTimeout{30'000};

}  // namespace

Result<Line> Line::Connect(const std::string& endpoint) {
  MILLRACE_TRY_ASSIGN(auto transport, wire::MakeZmtpTransport());
  MILLRACE_TRY_ASSIGN(auto socket, transport->Connect(endpoint));
  return Line(std::move(transport), std::move(socket));
}

Result<void> Line::Send(const wire::Message& message) {
  const std::string frame = wire::Encode(message);
  const MonoTime give_up = clock_.Now() + kSendTimeout;
  while (true) {
    auto sent = socket_->Send(frame);
    const bool later = !sent && (sent.error().code == ErrorCode::kUnavailable || sent.error().code == ErrorCode::kLimit);
    if (!later || clock_.Now() >= give_up) return sent;
    transport_->Wait(Millis{2});
  }
}

Result<std::optional<wire::Message>> Line::Receive() {
  const auto frame = socket_->Receive();
  if (!frame) return std::optional<wire::Message>{};
  MILLRACE_TRY_ASSIGN(wire::Message message, wire::Decode(*frame));
  return std::optional<wire::Message>{std::move(message)};
}

Alarm::Alarm() : fd_(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) {
  ::prctl(PR_SET_TIMERSLACK, 1000UL);  // nanoseconds; the default of 50 µs would be measured as latency
}

Alarm::~Alarm() {
  if (fd_ >= 0) ::close(fd_);
}

void Alarm::Set(MonoTime at) {
  const std::int64_t us = std::max<std::int64_t>(1, at.time_since_epoch().count());
  const itimerspec spec{.it_interval = {}, .it_value = {.tv_sec = us / 1'000'000, .tv_nsec = us % 1'000'000 * 1000}};
  ::timerfd_settime(fd_, TFD_TIMER_ABSTIME, &spec, nullptr);
}

void Alarm::Clear() {
  const itimerspec never{};
  ::timerfd_settime(fd_, 0, &never, nullptr);
}

}  // namespace millrace::bench
