// The bytes of ZMTP as RFC 37 has them, from pieces of any size; what breaks a connection; handshake and heartbeats of a
// session under a clock that the test moves.
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "common/base/limits.h"
#include "common/wire/zmtp_codec.h"
#include "common/wire/zmtp_session.h"

namespace millrace::wire::zmtp {
namespace {

using namespace std::literals;

constexpr MonoTime kStart{Micros{1'000'000'000}};

std::string Frame(std::string_view body, char flags = 0) {
  std::string out(1, body.size() > 255 ? static_cast<char>(flags | 2) : flags);
  if (body.size() > 255)
    for (int shift = 56; shift >= 8; shift -= 8) out.push_back(static_cast<char>(std::uint64_t{body.size()} >> shift));
  out.push_back(static_cast<char>(body.size()));
  return out.append(body);
}

std::string Greet(char minor = 1, std::string_view mechanism = "NULL") {
  std::string greeting = "\xff\0\0\0\0\0\0\0\1\x7f\3"s;
  greeting.push_back(minor);
  greeting += mechanism;
  greeting.resize(64, '\0');
  return greeting;
}

std::string Property(std::string_view name, std::string_view value) {
  std::string out(1, static_cast<char>(name.size()));
  out += name;
  out += "\0\0\0"s;
  out.push_back(static_cast<char>(value.size()));
  return out.append(value);
}

std::string ReadyOf(std::string_view type, std::string_view identity = "") {
  return Frame("\5READY"s + Property("Socket-Type", type) + Property("Identity", identity), 4);
}

// What a session makes of bytes that come in pieces of `piece`.
struct Trace {
  std::vector<std::string> messages;
  std::string out;
  bool ready = false, ended = false;
  void Feed(Session& session, std::string_view bytes, std::size_t piece = std::string_view::npos, MonoTime now = kStart) {
    while (!bytes.empty() && !ended) {
      std::string_view in = bytes.substr(0, piece);
      bytes.remove_prefix(in.size());
      for (Session::Event event; (event = session.Next(in, now, out)) != Session::Event::kNone && !ended;) {
        if (event == Session::Event::kReady) ready = true;
        if (event == Session::Event::kMessage) messages.push_back(session.TakeMessage());
        if (event == Session::Event::kEnded) ended = true;
      }
      EXPECT_TRUE(ended || in.empty());
    }
  }
};

struct Opened {
  Session session{SocketType::kRouter, Times{}, kStart};
  Trace trace;
  explicit Opened(char minor = 1) {
    trace.Feed(session, Greet(minor) + ReadyOf("DEALER"));
    EXPECT_TRUE(trace.ready);
    trace.out.clear();
  }
};

TEST(ZmtpCodecTest, WritesWhatTheSpecificationSays) {
  EXPECT_EQ(EncodeGreeting("NULL"), Greet());
  EXPECT_EQ(EncodeReady("DEALER"), "\4\x29\5READY\x0bSocket-Type\0\0\0\6DEALER\x08Identity\0\0\0\0"s);
  EXPECT_EQ(EncodePing(6000ms), "\4\7\4PING\0\x3c"s);
  EXPECT_EQ(EncodePing(std::chrono::hours{9}), "\4\7\4PING\xff\xff"s);
  EXPECT_EQ(EncodePong("ctx"), "\4\x08\4PONGctx"s);
  EXPECT_EQ(EncodeError("no"), "\4\x09\5ERROR\2no"s);
  EXPECT_EQ(EncodeError(std::string(300, 'x')).size(), 9u + 6 + 1 + 255);  // a long command
  const auto view = [](const Header& h) { return std::string(h.bytes.data(), h.size); };
  EXPECT_EQ(view(MessageHeader(0)), "\0\0"s);
  EXPECT_EQ(view(MessageHeader(255)), "\0\xff"s);
  EXPECT_EQ(view(MessageHeader(256)), "\2\0\0\0\0\0\0\1\0"s);
  EXPECT_EQ(view(MessageHeader(kFrameBytesMax)), "\2\0\0\0\0\0\x80\0\0"s);
}

TEST(ZmtpCodecTest, ASessionReadsTheSameFromPiecesOfAnySize) {
  const std::string long_one(70'000, 'L');
  const std::string all = Greet() + ReadyOf("DEALER", "me") + Frame("one") + Frame("") + Frame("a", 1) + Frame("b") +
                          Frame(std::string(255, 'x')) + Frame("\4PING\0\x0a"s + "ctx", 4) + Frame(long_one) +
                          Frame("\7UNKNOWNdata", 4) + "\2\0\0\0\0\0\0\0\3abc"s;  // a long header for a short body is allowed
  for (const std::size_t piece : {1uz, 2uz, 3uz, 7uz, 10uz, 11uz, 63uz, 64uz, 65uz, 1000uz, 65'536uz, 1'000'000uz}) {
    Session session(SocketType::kRouter, Times{}, kStart);
    Trace trace;
    trace.Feed(session, all, piece);
    EXPECT_TRUE(trace.ready) << piece;
    EXPECT_FALSE(trace.ended) << session.problem();
    EXPECT_EQ(session.identity(), "me");
    EXPECT_EQ(trace.messages, (std::vector<std::string>{"one", "", std::string(255, 'x'), long_one, "abc"})) << piece;
    EXPECT_EQ(trace.out, EncodeReady("ROUTER") + EncodePong("ctx")) << piece;
  }
}

TEST(ZmtpCodecTest, MessagesOfSeveralPartsArePassedOverWhole) {
  Opened o;
  o.trace.Feed(o.session, Frame("a", 1) + Frame("b", 1) + Frame(std::string(1000, 'c'), 1) + Frame("d") + Frame("e") +
                              Frame("", 1) + Frame("like REQ") + Frame("f"));
  EXPECT_EQ(o.trace.messages, (std::vector<std::string>{"e", "f"}));
}

TEST(ZmtpCodecTest, OlderAndOtherPeersAreTurnedAwayByTheirFirstBytes) {
  struct Case {
    std::string bytes, problem;
  };
  for (const Case& c :
       {Case{"GET / HTTP/1.1\r\n", "no ZMTP"}, Case{"\x01\x00"s, "ZMTP 1.0"}, Case{"\xff\0\0\0\0\0\0\0\5\x7e"s, "ZMTP 1.0"},
        Case{"\xff\0\0\0\0\0\0\0\1\x7f\1\5"s, "ZMTP 2.0"}, Case{Greet(1, "PLAIN"), "mechanism is 'PLAIN'"},
        Case{Greet(1, "CURVE"), "mechanism is 'CURVE'"}, Case{Greet(1, "01234567890123456789"), "01234567890123456789"}}) {
    Session session(SocketType::kRouter, Times{}, kStart);
    Trace trace;
    trace.Feed(session, c.bytes, 1);
    EXPECT_TRUE(trace.ended);
    EXPECT_NE(session.problem().find(c.problem), std::string::npos) << session.problem();
    EXPECT_EQ(trace.out, "");
  }
}

TEST(ZmtpCodecTest, ANewerMajorVersionTalksLikeOurs) {
  std::string greeting = Greet(0);
  greeting[10] = 4;
  Session session(SocketType::kRouter, Times{}, kStart);
  Trace trace;
  trace.Feed(session, greeting + ReadyOf("DEALER") + Frame("x"));
  EXPECT_EQ(trace.messages, (std::vector<std::string>{"x"}));
}

TEST(ZmtpCodecTest, WhatBreaksAHandshake) {
  struct Case {
    std::string bytes, problem;
  };
  const std::string hold(300, 'i');
  std::string long_identity = "\5READY"s + Property("Socket-Type", "DEALER") + "\x08Identity\0\0\1\x2c"s + hold;
  for (const Case& c :
       {Case{ReadyOf("REQ"), "not a DEALER"}, Case{ReadyOf("PUB"), "not a DEALER"}, Case{ReadyOf("ROUTER"), "not a DEALER"},
        Case{Frame("\5READY"s, 4), "not a DEALER"}, Case{ReadyOf("DEALER", "\0x"sv), "zero byte"},
        Case{Frame(long_identity, 4), "identity of 300 bytes"}, Case{Frame("\5READY\xff", 4), "malformed"},
        Case{Frame("\5READY\1a\x7f\xff\xff\xff"s, 4), "malformed"}, Case{Frame("\5HELLOxx", 4), "without READY"},
        Case{Frame("\4PING\0\0"s, 4), "without READY"}, Case{Frame("", 4), "without a name"},
        Case{Frame("\x20READY", 4), "without a name"}, Case{Frame("\5ERROR\4go\x01!"s, 4), "'go?!'"},
        Case{Frame("too soon"), "before the handshake"}, Case{Frame("\5READY", 5), "in the middle of a message"},
        Case{"\x08\1"s, "flags 0x08"}, Case{"\x80"s + "\1"s, "flags 0x80"},
        Case{"\6\0\0\0\0\0\0\x10\1"s, "command of 4097 bytes"}, Case{"\6\x80\0\0\0\0\0\0\0"s, "9223372036854775808 bytes"}}) {
    Session session(SocketType::kRouter, Times{}, kStart);
    Trace trace;
    trace.Feed(session, Greet() + c.bytes, 5);
    EXPECT_TRUE(trace.ended) << c.problem;
    EXPECT_NE(session.problem().find(c.problem), std::string::npos) << session.problem() << " / " << c.problem;
    std::string_view more = "anything";
    EXPECT_EQ(session.Next(more, kStart, trace.out), Session::Event::kEnded);
  }
}

TEST(ZmtpCodecTest, ARouterSaysWhyItRefusesInsteadOfReady) {
  Session session(SocketType::kRouter, Times{}, kStart);
  Trace trace;
  trace.Feed(session, Greet() + ReadyOf("SUB"));
  EXPECT_EQ(trace.out, EncodeError("its socket is not a DEALER"));
}

TEST(ZmtpCodecTest, ADealerSpeaksFirstAndWantsARouter) {
  Session session(SocketType::kDealer, Times{}, kStart);
  Trace trace;
  trace.Feed(session, Greet());
  EXPECT_EQ(trace.out, EncodeReady("DEALER"));
  EXPECT_FALSE(trace.ready);
  trace.Feed(session, ReadyOf("ROUTER") + Frame("x"));
  EXPECT_TRUE(trace.ready);
  EXPECT_EQ(trace.messages, (std::vector<std::string>{"x"}));
  Session other(SocketType::kDealer, Times{}, kStart);
  Trace refused;
  refused.Feed(other, Greet() + ReadyOf("DEALER"));
  EXPECT_TRUE(refused.ended);
}

TEST(ZmtpCodecTest, NamesOfPropertiesHaveNoCase) {
  Session session(SocketType::kRouter, Times{}, kStart);
  Trace trace;
  trace.Feed(session, Greet() + Frame("\5READY"s + Property("X-Other", "?") + Property("SOCKET-type", "DEALER"), 4));
  EXPECT_TRUE(trace.ready);
}

TEST(ZmtpCodecTest, WhatBreaksAConnectionThatIsReady) {
  struct Case {
    std::string bytes, problem;
  };
  for (const Case& c :
       {Case{"\2\0\0\0\0\0\x80\0\1"s, "frame of 8388609 bytes, limit 8388608"},
        Case{"\3\x80\0\0\0\0\0\0\0"s, "frame of 9223372036854775808 bytes"},
        Case{"\2\xff\xff\xff\xff\xff\xff\xff\xff"s, "frame of 18446744073709551615 bytes"},
        Case{Frame("part", 1) + Frame("\4PING\0\0"s, 4), "in the middle of a message"},
        Case{Frame("\4PING\0"s, 4), "malformed PING"}, Case{Frame("\4PING\0\0"s + std::string(17, 'c'), 4), "malformed PING"},
        Case{Frame("\5ERROR\3bye", 4), "'bye'"}, Case{Frame("", 4), "without a name"}}) {
    Opened o;
    o.trace.Feed(o.session, c.bytes);
    EXPECT_TRUE(o.trace.ended) << c.problem;
    EXPECT_NE(o.session.problem().find(c.problem), std::string::npos) << o.session.problem();
  }
}

TEST(ZmtpCodecTest, TheLargestFramePasses) {
  Opened o;
  o.trace.Feed(o.session, Frame(std::string(kFrameBytesMax, 'x')), 65'536);
  ASSERT_EQ(o.trace.messages.size(), 1u);
  EXPECT_EQ(o.trace.messages[0].size(), kFrameBytesMax);
}

TEST(ZmtpSessionTest, AHandshakeHasFiveSeconds) {
  Session session(SocketType::kRouter, Times{}, kStart);
  Trace trace;
  trace.Feed(session, Greet(), 64, kStart + 4s);
  EXPECT_TRUE(session.Tick(kStart + 4999ms, trace.out));
  EXPECT_FALSE(session.Tick(kStart + 5000ms, trace.out));
  EXPECT_NE(session.problem().find("no handshake"), std::string::npos);
}

TEST(ZmtpSessionTest, ASilentPeerIsAskedAndThenGone) {
  Opened o;
  std::string out;
  EXPECT_TRUE(o.session.Tick(kStart + 1999ms, out));
  EXPECT_EQ(out, "");
  EXPECT_TRUE(o.session.Tick(kStart + 2s, out));
  EXPECT_EQ(out, EncodePing(6s));
  out.clear();
  EXPECT_TRUE(o.session.Tick(kStart + 3s, out));
  EXPECT_EQ(out, "");
  EXPECT_TRUE(o.session.Tick(kStart + 5999ms, out));
  EXPECT_FALSE(o.session.Tick(kStart + 6s, out));
  EXPECT_EQ(o.session.problem(), "silent for 6000 ms");
}

TEST(ZmtpSessionTest, AnyByteIsAnAnswer) {
  Opened o;
  std::string out;
  EXPECT_TRUE(o.session.Tick(kStart + 2s, out));
  o.trace.Feed(o.session, Frame("\4PONG", 4), 64, kStart + 5900ms);
  EXPECT_TRUE(o.session.Tick(kStart + 7s, out));
  EXPECT_TRUE(o.session.Tick(kStart + 7900ms, out));
  o.trace.Feed(o.session, "\0"sv, 64, kStart + 11'800ms);  // half of a header
  EXPECT_TRUE(o.session.Tick(kStart + 11'900ms, out));
}

TEST(ZmtpSessionTest, NoPingWhileBothSidesSpeakAndOneWhenOnlyThePeerDoes) {
  Opened o;
  std::string out;
  MonoTime now = kStart;
  for (int i = 0; i < 20; ++i) {
    now += 1s;
    o.trace.Feed(o.session, Frame("beat"), 64, now);
    o.session.Sent(now);
    EXPECT_TRUE(o.session.Tick(now, out));
  }
  EXPECT_EQ(out, "");
  for (int i = 0; i < 20; ++i) {  // the time to live that our PINGs promise is kept
    now += 500ms;
    o.trace.Feed(o.session, Frame("beat"), 64, now);
    EXPECT_TRUE(o.session.Tick(now, out));
  }
  EXPECT_EQ(out.size(), 5 * EncodePing(6s).size());
}

TEST(ZmtpSessionTest, AfterAnAbsenceOfOursThePeerCanStillAnswer) {
  Opened o;
  std::string out;
  EXPECT_TRUE(o.session.Tick(kStart + 60s, out));
  EXPECT_EQ(out, EncodePing(6s));
  EXPECT_TRUE(o.session.Tick(kStart + 63s, out));
  EXPECT_FALSE(o.session.Tick(kStart + 64s, out));
}

TEST(ZmtpSessionTest, APeersOwnTimeToLiveEndsItSooner) {
  Opened o;
  o.trace.Feed(o.session, Frame("\4PING\0\x1e"s, 4));  // 3 s
  std::string out;
  EXPECT_TRUE(o.session.Tick(kStart + 2s, out));
  EXPECT_TRUE(o.session.Tick(kStart + 2900ms, out));
  EXPECT_FALSE(o.session.Tick(kStart + 3s, out));
}

TEST(ZmtpSessionTest, APeerOfVersionThreeZeroIsNeverAsked) {
  Opened o('\0');
  std::string out;
  EXPECT_TRUE(o.session.Tick(kStart + 2s, out));
  EXPECT_TRUE(o.session.Tick(kStart + 600s, out));
  EXPECT_EQ(out, "");
}

}  // namespace
}  // namespace millrace::wire::zmtp
