// Peers that break the rules, played with raw sockets: each costs itself only. A well-behaved client of the same server goes on
// meanwhile, and what the server spends is bounded.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/wire/stream_socket.h"
#include "common/wire/zmtp_codec.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::wire {
namespace {

using namespace std::literals;

constexpr auto kPatience = Millis{20'000};

std::string Ready(std::string_view type, std::string_view identity = "") {
  const auto property = [](std::string_view name, std::string_view value) {
    std::string out(1, static_cast<char>(name.size()));
    return out.append(name).append("\0\0\0"s).append(1, static_cast<char>(value.size())).append(value);
  };
  const std::string body = "\5READY"s + property("Socket-Type", type) + property("Identity", identity);
  return std::string{'\4', static_cast<char>(body.size())} + body;
}
std::string Opening(std::string_view identity = "") { return zmtp::EncodeGreeting("NULL") + Ready("DEALER", identity); }
std::string Message(std::string_view body) {
  const zmtp::Header header = zmtp::MessageHeader(body.size());
  return std::string(header.bytes.data(), header.size).append(body);
}

// A connection that says what the test tells it to.
class Raw {
 public:
  explicit Raw(const std::string& endpoint) {
    Dialled dialled = Dial(*ParseEndpoint(endpoint));
    fd_ = std::move(dialled.fd);
    ::fcntl(fd_.get(), F_SETFL, ::fcntl(fd_.get(), F_GETFL) & ~O_NONBLOCK);
  }
  explicit Raw(Fd fd) : fd_(std::move(fd)) {}

  void Say(std::string_view bytes) const {
    ASSERT_EQ(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), std::ssize(bytes));
  }
  ssize_t SayWhatFits(std::string_view bytes) const {
    return ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  // What has come; sets `closed` at the end of the stream.
  std::string Hear(bool* closed = nullptr) const {
    std::string all;
    char buffer[65536];
    while (true) {
      const ssize_t n = ::recv(fd_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
      if (n > 0) {
        all.append(buffer, static_cast<std::size_t>(n));
        continue;
      }
      if (closed != nullptr) *closed = n == 0 || errno != EAGAIN;
      return all;
    }
  }
  void HangUp() { fd_.Close(); }

 private:
  Fd fd_;
};

std::size_t PagesMapped() {
  std::ifstream statm("/proc/self/statm");
  std::size_t pages = 0;
  statm >> pages;
  return pages;
}

class ZmtpHostileTest : public ::testing::Test {
 protected:
  ZmtpHostileTest() : ZmtpHostileTest("tcp://127.0.0.1:0") {}
  explicit ZmtpHostileTest(const std::string& endpoint) {
    transport_ = *MakeZmtpTransport(nullptr, times_);
    good_transport_ = *MakeZmtpTransport();
    server_ = *transport_->Bind(endpoint);
    good_ = *good_transport_->Connect(server_->Endpoint());
  }
  Raw Connect() const { return Raw(server_->Endpoint()); }

  void Turn() {
    good_transport_->Wait(0ms);
    transport_->Wait(1ms);
    while (auto got = server_->Receive()) {
      if (got->frame.starts_with("good ")) {
        (void)server_->Send(got->peer, got->frame);
      } else {
        others_.push_back(std::move(*got));
      }
    }
  }
  template <class Condition>
  void TurnUntil(Condition condition) {
    const MonoTime end = clock_.Now() + kPatience;
    while (!condition()) {
      ASSERT_LT(clock_.Now(), end);
      Turn();
    }
  }
  // The well-behaved client gets its answer.
  void GoodGoesOn() {
    const std::string word = "good " + std::to_string(++words_);
    TurnUntil([&] { return good_->Send(word).has_value(); });
    std::optional<std::string> answer;
    TurnUntil([&] { return (answer = good_->Receive()).has_value(); });
    EXPECT_EQ(answer, word);
  }
  void ExpectClosed(const Raw& raw) {
    bool closed = false;
    TurnUntil([&] { return raw.Hear(&closed), closed; });
    GoodGoesOn();
  }
  bool IsGone(const PeerId& peer) {
    const auto sent = server_->Send(peer, "x");
    return !sent && sent.error().code == ErrorCode::kUnavailable;
  }
  // A raw peer whose handshake is done.
  Raw Member(std::string_view identity = "") {
    Raw raw = Connect();
    raw.Say(Opening(identity));
    std::string heard;
    TurnUntil([&] { return (heard += raw.Hear()).size() >= 64 + zmtp::EncodeReady("ROUTER").size(); });
    return raw;
  }

  SystemClock clock_;
  const ZmtpTimes times_{.handshake = 300ms, .heartbeat = 200ms, .heartbeat_timeout = 600ms};
  std::unique_ptr<Transport> transport_, good_transport_;
  std::unique_ptr<ServerSocket> server_;
  std::unique_ptr<ClientSocket> good_;
  std::vector<Received> others_;
  int words_ = 0;
};

TEST_F(ZmtpHostileTest, GarbageOldVersionsAndForeignProtocolsAreClosed) {
  for (const std::string& bytes :
       {"GET / HTTP/1.1\r\nHost: x\r\n\r\n"s, std::string(100'000, 'x'), std::string(64, '\xff'), "\x01\0"s,
        "\xff\0\0\0\0\0\0\0\1\x7f\1\5\0\0"s, zmtp::EncodeGreeting("CURVE"), zmtp::EncodeGreeting("NULL") + "\0\5hello"s,
        zmtp::EncodeGreeting("NULL") + Ready("REQ"), zmtp::EncodeGreeting("NULL") + Ready("PUB"), Opening("\0me"s)}) {
    const Raw raw = Connect();
    raw.Say(bytes);
    ExpectClosed(raw);
  }
  EXPECT_TRUE(others_.empty());
}

TEST_F(ZmtpHostileTest, APeerOfTheWrongSortIsToldWhy) {
  const Raw raw = Connect();
  raw.Say(zmtp::EncodeGreeting("NULL") + Ready("REQ"));
  std::string heard;
  bool closed = false;
  TurnUntil([&] { return heard += raw.Hear(&closed), closed; });
  EXPECT_NE(heard.find("ERROR"), std::string::npos);
  EXPECT_NE(heard.find("not a DEALER"), std::string::npos);
  EXPECT_EQ(heard.find("READY"), std::string::npos);
}

TEST_F(ZmtpHostileTest, AHandshakeThatIsNeverFinishedEnds) {
  const Raw silent = Connect(), half = Connect(), greeted = Connect();
  half.Say(Opening().substr(0, 40));
  greeted.Say(zmtp::EncodeGreeting("NULL") + Ready("DEALER").substr(0, 9));
  for (const Raw* raw : {&silent, &half, &greeted}) ExpectClosed(*raw);
}

TEST_F(ZmtpHostileTest, ADripOfBytesIsNoHandshake) {
  const Raw raw = Connect();
  const std::string opening = Opening();
  bool closed = false;
  std::size_t said = 0;
  while (!closed && said + 1 < opening.size()) {
    if (raw.SayWhatFits(opening.substr(said, 1)) < 0) break;
    ++said;
    const MonoTime next = clock_.Now() + 20ms;
    while (clock_.Now() < next) Turn();
    raw.Hear(&closed);
  }
  EXPECT_LT(said + 1, opening.size());
}

TEST_F(ZmtpHostileTest, FramesOverTheLimitAreRefusedByTheirHeader) {
  for (const std::string& header : {"\2\x80\0\0\0\0\0\0\0"s, "\2\xff\xff\xff\xff\xff\xff\xff\xff"s, "\2\0\0\0\0\0\x80\0\1"s,
                                    "\3\0\0\0\1\0\0\0\0"s, "\6\0\0\0\0\0\1\0\0"s, "\x08\0"s}) {
    const Raw raw = Member();
    raw.Say(header);
    ExpectClosed(raw);
  }
}

TEST_F(ZmtpHostileTest, APromiseOfALargeFrameCostsNoMemory) {
  GoodGoesOn();
  const std::size_t before = PagesMapped();
  std::vector<Raw> raws;
  for (int i = 0; i < 200; ++i) {
    raws.push_back(Member());
    raws.back().Say("\2\0\0\0\0\0\x80\0\0half"s);
  }
  GoodGoesOn();
  EXPECT_LT((PagesMapped() - before) * 4096, 200u << 20);  // 200 promises of 8 MiB
  for (Raw& raw : raws) raw.HangUp();                      // in the middle of the frame
  GoodGoesOn();
  EXPECT_TRUE(others_.empty());
}

TEST_F(ZmtpHostileTest, AskingWithoutEndAndNeverReadingCostsNoMemory) {
  const Raw raw = Member();
  std::string pings;
  while (pings.size() < 1u << 20) pings += zmtp::EncodePing(1s);
  GoodGoesOn();
  const std::size_t before = PagesMapped();
  for (int i = 0; i < 16; ++i) {
    for (std::size_t at = 0; at < pings.size();) {
      const ssize_t n = raw.SayWhatFits(std::string_view(pings).substr(at));
      if (n > 0) at += static_cast<std::size_t>(n);
      Turn();
    }
    GoodGoesOn();
  }
  EXPECT_LT(PagesMapped() * 4096, before * 4096 + (4u << 20));  // the answers take more than 12 MiB
}

TEST_F(ZmtpHostileTest, AFloodLeavesTheOthersTheirTurn) {
  std::vector<Raw> raws;
  for (int i = 0; i < 4; ++i) raws.push_back(Member());
  std::string flood;
  while (flood.size() < 4u << 20) flood += Message("x");
  const auto pour = [&] {
    for (const Raw& raw : raws) {
      while (raw.SayWhatFits(flood) > 0) {
      }
    }
  };
  GoodGoesOn();
  for (int i = 0; i < 20; ++i) {
    pour();
    others_.clear();
    ASSERT_TRUE(good_->Send("good " + std::to_string(i)));
    good_transport_->Flush();
    bool came = false;
    for (int turn = 0; !came && turn < 200; ++turn) {
      transport_->Wait(1ms);
      for (int n = 0; n < 256; ++n) {  // as the broker does
        const auto got = server_->Receive();
        if (!got) break;
        came = came || got->frame.starts_with("good ");
      }
      pour();
    }
    ASSERT_TRUE(came) << i;
  }
}

TEST_F(ZmtpHostileTest, APeerThatDoesNotReadIsALimitAndTheOthersGetTheirs) {
  Raw raw = Member("reader");
  raw.Say(Message("hello"));
  TurnUntil([&] { return !others_.empty(); });
  ASSERT_EQ(others_[0].peer, "reader");
  const std::string frame(100'000, 'x');
  int sent = 0;
  Result<void> last;
  while (sent < 5000 && (last = server_->Send("reader", frame))) ++sent;
  ASSERT_FALSE(last);
  EXPECT_EQ(last.error().code, ErrorCode::kLimit);
  EXPECT_GT(sent, 100);
  EXPECT_LT(sent, 1100);
  // It is silent too, so that it will be disconnected; the good one is served before and after.
  GoodGoesOn();
  TurnUntil([&] { return IsGone("reader"); });
  GoodGoesOn();
}

TEST_F(ZmtpHostileTest, OnlyTheFirstOfTwoWithOneIdentityIsServed) {
  Raw first = Member("twin");
  const Raw second = Connect();
  second.Say(Opening("twin") + Message("from the second"));
  ExpectClosed(second);
  first.Say(Message("from the first"));
  TurnUntil([&] { return !others_.empty(); });
  EXPECT_EQ(others_[0].frame, "from the first");
  EXPECT_EQ(others_[0].peer, "twin");
  first.HangUp();
  TurnUntil([&] { return IsGone("twin"); });
  const Raw third = Member("twin");
  third.Say(Message("from the third"));
  TurnUntil([&] { return others_.size() > 1; });
  EXPECT_EQ(others_[1].frame, "from the third");
}

TEST_F(ZmtpHostileTest, ASilentPeerIsAskedAndThenDisconnected) {
  const Raw raw = Member();
  std::string heard;
  bool closed = false;
  const MonoTime start = clock_.Now();
  TurnUntil([&] { return heard += raw.Hear(&closed), closed; });
  EXPECT_NE(heard.find("PING"), std::string::npos);
  EXPECT_GE(clock_.Now() - start, 500ms);
  GoodGoesOn();
}

TEST_F(ZmtpHostileTest, APeerThatAnswersStays) {
  const Raw raw = Member("answers");
  const MonoTime end = clock_.Now() + 3 * times_.heartbeat_timeout;
  while (clock_.Now() < end) {
    Turn();
    bool closed = false;
    if (raw.Hear(&closed).find("PING") != std::string::npos) raw.Say(zmtp::EncodePong(""));
    ASSERT_FALSE(closed);
  }
  EXPECT_TRUE(server_->Send("answers", "still there"));
}

TEST_F(ZmtpHostileTest, MoreConnectionsThanDescriptorsWaitAndDoNotSpin) {
  GoodGoesOn();
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  const int next = ::dup(0);
  ::close(next);
  std::vector<Raw> raws;
  for (int i = 0; i < 40; ++i) raws.push_back(Connect());
  rlimit tight = before;
  tight.rlim_cur = static_cast<rlim_t>(next) + 8;  // room for two more
  ::setrlimit(RLIMIT_NOFILE, &tight);
  rusage used{};
  const auto cpu = [&] {
    ::getrusage(RUSAGE_THREAD, &used);
    return used.ru_utime.tv_sec * 1'000'000 + used.ru_utime.tv_usec + used.ru_stime.tv_sec * 1'000'000 + used.ru_stime.tv_usec;
  };
  const auto cpu_before = cpu();
  const MonoTime end = clock_.Now() + 1s;
  while (clock_.Now() < end) {
    transport_->Wait(50ms);
    good_transport_->Wait(0ms);  // answers pings: it is not to be cut for silence
  }
  EXPECT_LT(cpu() - cpu_before, 500'000);
  ::setrlimit(RLIMIT_NOFILE, &before);
  std::string heard;
  raws.back().Say(Opening());
  TurnUntil([&] { return (heard += raws.back().Hear()).find("READY") != std::string::npos; });
  GoodGoesOn();
}

TEST_F(ZmtpHostileTest, AThousandPeersAtOnce) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < 2200) GTEST_SKIP() << "needs 2,200 descriptors, has " << limit.rlim_cur;
  std::vector<Raw> raws;
  for (int i = 0; i < 1000; ++i) {
    raws.push_back(Connect());
    raws.back().Say(Opening(std::to_string(i)) + Message("from " + std::to_string(i)));
    if (i % 100 == 0) Turn();
  }
  TurnUntil([&] { return others_.size() == raws.size(); });
  for (const Received& received : others_) {
    EXPECT_EQ(received.frame, "from " + received.peer);
    ASSERT_TRUE(server_->Send(received.peer, "to " + received.peer));
  }
  transport_->Flush();
  for (std::size_t i = 0; i < raws.size(); ++i) {
    std::string heard;
    TurnUntil([&] { return (heard += raws[i].Hear()).find("to " + std::to_string(i)) != std::string::npos; });
  }
}

// ---- the other side ------------------------------------------------------------------------------------------------------

TEST(ZmtpClientTest, AServerThatHangsUpOrTalksNonsenseIsTriedAgainWithPauses) {
  const SystemClock clock;
  auto listener = *Listen(*ParseEndpoint("tcp://127.0.0.1:0"));
  auto transport = *MakeZmtpTransport();
  auto client = *transport->Connect(listener.endpoint);
  int connections = 0;
  const MonoTime end = clock.Now() + 2s;
  while (clock.Now() < end) {
    transport->Wait(5ms);
    while (true) {
      Accepted accepted = Accept(listener.fd.get());
      if (!accepted.fd) break;
      const Raw raw(std::move(accepted.fd));
      if (++connections % 2 == 0) raw.SayWhatFits("220 smtp.example ESMTP\r\n");
    }
    EXPECT_EQ(client->Send("x").error().code, ErrorCode::kUnavailable);
  }
  EXPECT_GE(connections, 3);
  EXPECT_LE(connections, 12);
}

TEST(ZmtpClientTest, WhatWasSentBeforeTheEndOfASocketArrives) {
  auto transport = *MakeZmtpTransport();
  auto server = *transport->Bind("tcp://127.0.0.1:0");
  std::jthread client_thread([endpoint = server->Endpoint()] {
    const SystemClock clock;
    auto own = *MakeZmtpTransport();
    auto client = *own->Connect(endpoint);
    const MonoTime end = clock.Now() + kPatience;
    while (!client->Send(std::string(kFrameBytesMax, 'x')) && clock.Now() < end) own->Wait(5ms);
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(client->Send("last words"));
  });
  const SystemClock clock;
  const MonoTime end = clock.Now() + kPatience;
  int got = 0;
  while (got < 101 && clock.Now() < end) {
    transport->Wait(100ms);
    while (server->Receive()) ++got;
  }
  EXPECT_EQ(got, 101);
}

TEST(ZmtpIpcTest, ADeadSocketIsReplacedALivingOneAndAFileAreNot) {
  const auto folder = std::filesystem::temp_directory_path();
  const std::string path = folder / ("mr_zmtp_" + std::to_string(::getpid()));
  const std::string endpoint = "ipc://" + path;
  {
    const Fd dead = std::move(Listen(*ParseEndpoint(endpoint))->fd);
  }
  ASSERT_TRUE(std::filesystem::exists(path));
  auto transport = *MakeZmtpTransport();
  {
    auto server = transport->Bind(endpoint);
    ASSERT_TRUE(server) << server.error().message;
    EXPECT_EQ((*MakeZmtpTransport())->Bind(endpoint).error().code, ErrorCode::kConflict);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  std::ofstream(path) << "precious";
  EXPECT_EQ(transport->Bind(endpoint).error().code, ErrorCode::kConflict);
  EXPECT_TRUE(std::filesystem::exists(path));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace millrace::wire
