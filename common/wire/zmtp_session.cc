#include "common/wire/zmtp_session.h"

#include <utility>

namespace millrace::wire::zmtp {

std::string_view Name(SocketType type) { return type == SocketType::kRouter ? "ROUTER" : "DEALER"; }

void NullMechanism::Begin(std::string& out) const {
  if (self_ == SocketType::kDealer) out += EncodeReady(Name(self_));
}

std::unexpected<Error> NullMechanism::Refuse(const std::string& problem, std::string& out) const {
  if (self_ == SocketType::kRouter) out += EncodeError(problem);
  return Fail(ErrorCode::kRejected, "{}", problem);
}

Result<void> NullMechanism::On(const Command& command, std::string& out) {
  if (command.name == "ERROR") return Fail(ErrorCode::kRejected, "it refuses this side: '{}'", ParseErrorReason(command.data));
  if (command.name != "READY") return Refuse("a handshake without READY", out);
  auto ready = ParseReady(command.data);
  if (!ready) return Refuse(ready.error().message, out);
  const std::string_view wanted = Name(self_ == SocketType::kRouter ? SocketType::kDealer : SocketType::kRouter);
  if (ready->socket_type != wanted) return Refuse(fmt::format("its socket is not a {}", wanted), out);
  // Names that begin with a zero are those that a ROUTER makes itself.
  if (ready->identity.starts_with('\0')) return Refuse("an identity that begins with a zero byte", out);
  identity_ = std::move(ready->identity);
  if (self_ == SocketType::kRouter) out += EncodeReady(Name(self_));
  return {};
}

Session::Session(SocketType self, const Times& times, MonoTime now)
    : times_(times), mechanism_(self), started_(now), heard_(now), spoke_(now) {}

std::string Session::Greeting() { return EncodeGreeting(NullMechanism::kName); }

Session::Event Session::End(std::string problem) {
  problem_ = std::move(problem);
  return Event::kEnded;
}

Session::Event Session::Next(std::string_view& in, MonoTime now, std::string& out) {
  if (!problem_.empty()) return Event::kEnded;
  heard_ = now;
  pinged_ = {};
  while (true) {
    switch (decoder_.Next(in)) {
      case Decoder::Item::kNone: return Event::kNone;
      case Decoder::Item::kGreeting:
        if (!OnGreeting(out)) return Event::kEnded;
        break;
      case Decoder::Item::kCommand:
        if (const Event event = OnCommand(out); event != Event::kNone) return event;
        break;
      case Decoder::Item::kMessage: return Event::kMessage;
      case Decoder::Item::kBroken: return End(decoder_.problem());
    }
  }
}

bool Session::OnGreeting(std::string& out) {
  const auto& greeting = decoder_.greeting();
  if (greeting.mechanism != NullMechanism::kName) {
    End(fmt::format("its security mechanism is '{}', not {}", greeting.mechanism, NullMechanism::kName));
    return false;
  }
  mechanism_.Begin(out);
  return true;
}

Session::Event Session::OnCommand(std::string& out) {
  const auto command = ParseCommand(decoder_.body());
  if (!command) return End(command.error().message);
  if (ready_) return OnTraffic(*command, out);
  if (const auto done = mechanism_.On(*command, out); !done) return End(done.error().message);
  ready_ = true;
  decoder_.AllowMessages();
  return Event::kReady;
}

Session::Event Session::OnTraffic(const Command& command, std::string& out) {
  if (command.name == "PING") {
    const auto ping = ParsePing(command.data);
    if (!ping) return End(ping.error().message);
    peer_ttl_ = ping->ttl;
    out += EncodePong(ping->context);
  } else if (command.name == "ERROR") {
    return End(fmt::format("it ends the connection: '{}'", ParseErrorReason(command.data)));
  }
  return Event::kNone;  // PONG: that it came is all; others are of later versions or for other sockets
}

bool Session::Tick(MonoTime now, std::string& out) {
  if (!ready_) {
    if (now - started_ < times_.handshake) return true;
    End(fmt::format("no handshake within {} ms", times_.handshake.count()));
    return false;
  }
  const Micros silent = now - heard_;
  // Measured from the PING: after this process itself was away, the peer has its chance to answer. A peer of 3.0 gets none.
  const bool unanswered = pinged_ != MonoTime{} && now - pinged_ >= times_.heartbeat_timeout - times_.heartbeat;
  if (unanswered || (peer_ttl_ > Millis{0} && silent >= peer_ttl_ && pinged_ != MonoTime{})) {
    End(fmt::format("silent for {} ms", std::chrono::floor<Millis>(silent).count()));
    return false;
  }
  // Any byte proves as much as an answer; and what was promised to the peer as a time to live is kept.
  const bool knows_ping = decoder_.greeting().minor >= 1;
  const bool ask = silent >= times_.heartbeat && pinged_ == MonoTime{};
  if (knows_ping && (ask || now - spoke_ >= times_.heartbeat)) {
    out += EncodePing(times_.heartbeat_timeout);
    if (silent >= times_.heartbeat && pinged_ == MonoTime{}) pinged_ = now;
    spoke_ = now;
  }
  return true;
}

}  // namespace millrace::wire::zmtp
