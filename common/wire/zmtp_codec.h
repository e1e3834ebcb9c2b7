// The bytes of ZMTP 3.1 (ZeroMQ's RFC 37; 3.0 is RFC 23): greeting, frames, commands. No I/O, no clock.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::wire::zmtp {

inline constexpr std::size_t kGreetingBytes = 64;
inline constexpr std::size_t kHeaderBytesMax = 9;
inline constexpr std::size_t kCommandBytesMax = 4096;
inline constexpr std::size_t kIdentityBytesMax = 255;
inline constexpr std::size_t kPingContextBytesMax = 16;
inline constexpr std::size_t kErrorReasonBytesMax = 255;

// ---- writing -----------------------------------------------------------------------------------------------------------

struct Header {
  std::array<char, kHeaderBytesMax> bytes;
  std::uint8_t size;
};

std::string EncodeGreeting(std::string_view mechanism);  // 3.1; at most 20 bytes of mechanism
Header MessageHeader(std::size_t body_bytes);            // of a message with one part
std::string EncodeReady(std::string_view socket_type);   // a whole frame, with an empty Identity
std::string EncodeError(std::string_view reason);        // cut to kErrorReasonBytesMax
std::string EncodePing(Millis ttl);                      // a whole frame; the ttl is sent in tenths of a second
std::string EncodePong(std::string_view context);

// ---- reading -----------------------------------------------------------------------------------------------------------

struct Greeting {
  int minor = 0;  // of version 3
  std::string mechanism;
};

struct Command {
  std::string_view name, data;  // of the command's body
};
Result<Command> ParseCommand(std::string_view body);

// The properties of READY that matter here. Names are compared without regard to case; unknown ones are passed over.
struct Ready {
  std::string socket_type, identity;
};
Result<Ready> ParseReady(std::string_view data);

struct Ping {
  Millis ttl;  // 0 = none
  std::string_view context;
};
Result<Ping> ParsePing(std::string_view data);
std::string ParseErrorReason(std::string_view data);  // printable; empty when it is malformed

// Cuts a stream into a greeting, commands and messages, from pieces of any size. Holds at most one unfinished frame, which
// costs no more memory than twice the bytes that have come. Messages of several parts are passed over, never kept.
class Decoder {
 public:
  enum class Item : std::uint8_t { kNone, kGreeting, kCommand, kMessage, kBroken };

  explicit Decoder(std::size_t message_bytes_max) : message_bytes_max_(message_bytes_max) {}

  // Takes bytes from the front of `in` up to the end of the next item. kNone: all of `in` is taken and more is needed.
  // kBroken: this is no ZMTP 3, or a limit is passed; problem() says what, and every further call answers the same.
  Item Next(std::string_view& in);

  void AllowMessages() { messages_allowed_ = true; }  // before, a message breaks the stream
  const Greeting& greeting() const { return greeting_; }
  const std::string& body() const { return body_; }  // of the last command or message
  std::string TakeBody() { return std::move(body_); }
  const std::string& problem() const { return problem_; }

 private:
  enum class State : std::uint8_t { kGreeting, kHeader, kBody, kBroken };

  Item TakeGreeting(std::string_view& in);
  bool TakeHeader(std::string_view& in);  // false: more is needed, or broken
  bool CheckHeader(std::uint64_t size);
  Item TakeBytes(std::string_view& in);
  Item Break(std::string problem);

  std::size_t message_bytes_max_;
  bool messages_allowed_ = false;
  State state_ = State::kGreeting;
  std::array<char, kGreetingBytes> head_{};  // the greeting, then the header of a frame
  std::size_t head_bytes_ = 0;
  std::uint8_t flags_ = 0;  // of the frame at hand
  std::size_t left_ = 0;    // bytes of it to come
  bool skip_ = false;       // it is part of a message with several
  bool more_ = false;       // the frame before said that this one belongs to it
  std::string body_;
  Greeting greeting_;
  std::string problem_;
};

}  // namespace millrace::wire::zmtp
