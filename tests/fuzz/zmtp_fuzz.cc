// Any bytes as what a ZMTP peer says, before and after a handshake: the session reads the same however they are cut, keeps its
// limits, and stays ended once it is.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/limits.h"
#include "common/wire/zmtp_session.h"
#include "tests/fuzz/accepted.h"

namespace {

using namespace millrace::wire::zmtp;
using millrace::Micros;
using millrace::MonoTime;

constexpr MonoTime kNow{Micros{1'000'000}};

struct Trace {
  std::vector<std::string> messages;
  std::string out, identity, problem;
  bool operator==(const Trace&) const = default;
};

Trace Read(SocketType self, std::string_view bytes, std::size_t piece) {
  Session session(self, Times{}, kNow);
  Trace trace;
  bool ended = false;
  while (!bytes.empty() && !ended) {
    std::string_view in = bytes.substr(0, piece);
    bytes.remove_prefix(in.size());
    for (bool more = true; more;) {
      switch (session.Next(in, kNow, trace.out)) {
        case Session::Event::kNone:
          if (!in.empty()) std::abort();
          more = false;
          break;
        case Session::Event::kReady:
          if (!session.ready() || !trace.messages.empty()) std::abort();
          break;
        case Session::Event::kMessage:
          if (!session.ready()) std::abort();
          ++millrace::fuzz::accepted;
          trace.messages.push_back(session.TakeMessage());
          if (trace.messages.back().size() > millrace::kFrameBytesMax) std::abort();
          break;
        case Session::Event::kEnded:
          if (session.problem().empty()) std::abort();
          ended = true;
          more = false;
          break;
      }
    }
  }
  std::string_view rest = "x";
  if (ended && session.Next(rest, kNow, trace.out) != Session::Event::kEnded) std::abort();
  trace.identity = session.identity();
  trace.problem = session.problem();
  return trace;
}

std::string Opening(SocketType self) {
  return Session::Greeting() + EncodeReady(Name(self == SocketType::kRouter ? SocketType::kDealer : SocketType::kRouter));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::uint8_t choice = data[0];  // side, whether the handshake is done, the size of a piece
  const SocketType self = (choice & 1) != 0 ? SocketType::kRouter : SocketType::kDealer;
  std::string bytes((choice & 2) != 0 ? Opening(self) : "");
  bytes.append(reinterpret_cast<const char*>(data + 1), size - 1);
  const Trace whole = Read(self, bytes, bytes.size() + 1);
  if (Read(self, bytes, 1) != whole || Read(self, bytes, 1u + (choice >> 2)) != whole) std::abort();
  return 0;
}
