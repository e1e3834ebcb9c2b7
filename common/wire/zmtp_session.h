// One ZMTP connection as a state machine: greeting, handshake, heartbeats, messages. Bytes and instants in, events and bytes
// out; no I/O.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/wire/zmtp_codec.h"

namespace millrace::wire::zmtp {

enum class SocketType : std::uint8_t { kRouter, kDealer };
std::string_view Name(SocketType type);  // as on the wire

struct Times {
  Millis handshake{5000};
  Millis heartbeat{2000};          // a PING after so long without a byte from, or to, the peer
  Millis heartbeat_timeout{6000};  // so long without a byte: the peer is gone
};

// The security mechanism NULL: no secrets, only the properties of both sides. Another one (CURVE) is another class with
// these calls, chosen in Session, and there also seals and opens the messages.
class NullMechanism {
 public:
  explicit NullMechanism(SocketType self) : self_(self) {}
  static constexpr std::string_view kName = "NULL";

  // Once both greetings are exchanged. A DEALER speaks first; a ROUTER answers, so that it can refuse.
  void Begin(std::string& out) const;
  // The peer's side of the handshake. What is to be answered is appended to `out`, also with an error.
  Result<void> On(const Command& command, std::string& out);
  const std::string& identity() const { return identity_; }  // of the peer

 private:
  std::unexpected<Error> Refuse(const std::string& problem, std::string& out) const;

  SocketType self_;
  std::string identity_;
};

// Not thread-safe.
class Session {
 public:
  enum class Event : std::uint8_t { kNone, kReady, kMessage, kEnded };

  // `self` ROUTER takes DEALER peers and the other way round.
  Session(SocketType self, const Times& times, MonoTime now);

  static std::string Greeting();  // the first bytes to send

  // Takes bytes from the front of `in`, which came at `now`, up to the next event; appends what the protocol answers to `out`.
  // kNone: all of `in` is taken. kReady: once, before the first message. kEnded: send `out`, then close; problem() says why.
  Event Next(std::string_view& in, MonoTime now, std::string& out);
  std::string TakeMessage() { return decoder_.TakeBody(); }  // after kMessage

  void Sent(MonoTime now) { spoke_ = now; }  // written to the peer, as far as its socket took it
  // To be called several times in each Times::heartbeat. False: the peer is silent for too long; problem() says so.
  bool Tick(MonoTime now, std::string& out);

  bool ready() const { return ready_; }
  const std::string& identity() const { return mechanism_.identity(); }  // of the peer; empty: it has none
  const std::string& problem() const { return problem_; }

 private:
  Event End(std::string problem);
  bool OnGreeting(std::string& out);
  Event OnCommand(std::string& out);
  Event OnTraffic(const Command& command, std::string& out);

  Times times_;
  Decoder decoder_{kFrameBytesMax};
  NullMechanism mechanism_;
  bool ready_ = false;
  MonoTime started_, heard_, spoke_;
  MonoTime pinged_{};   // the oldest PING since the peer was last heard; zero: none
  Millis peer_ttl_{0};  // the peer wants to be forgotten after so long a silence; 0: as we like
  std::string problem_;
};

}  // namespace millrace::wire::zmtp
