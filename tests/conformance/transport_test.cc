// What every Transport does: run against our own ZMTP and libzmq, each over tcp, inproc and ipc, against each of them with the
// other one as its peer, and against the in-memory fake.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/random.h"
#include "common/wire/endpoint.h"
#include "common/wire/stream_socket.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/memory_transport.h"
#include "tests/support/zmq_transport.h"

namespace millrace::wire {
namespace {

constexpr auto kPatience = Millis{10'000};

struct Kit {
  virtual ~Kit() = default;
  virtual std::unique_ptr<Transport> Make(const std::string& host) = 0;
  virtual std::string Endpoint() = 0;
};

struct MemoryKit final : Kit {
  SystemClock clock;
  SeededRandom random{1};
  testing::MemoryNetwork network{clock, random};
  std::unique_ptr<Transport> Make(const std::string& host) override { return network.MakeTransport(host); }
  std::string Endpoint() override { return "mem://x"; }
};

// "ours", or "libzmq".
struct StreamKit final : Kit {
  StreamKit(std::string server_by, std::string client_by, std::string e)
      : server(std::move(server_by)), client(std::move(client_by)), endpoint(std::move(e)) {}
  std::shared_ptr<testing::ZmqContext> context = testing::MakeZmqContext();
  std::shared_ptr<LocalNames> names = MakeLocalNames();
  std::string server, client, endpoint;
  std::unique_ptr<Transport> Make(const std::string& host) override {
    if ((host == "server" ? server : client) == "ours") return *MakeZmtpTransport(names);
    return *testing::MakeZmqTransport(context);
  }
  std::string Endpoint() override { return endpoint; }
};

std::unique_ptr<Kit> MakeKit(const std::string& name) {
  if (name == "memory") return std::make_unique<MemoryKit>();
  const auto first = name.find('_'), second = name.find('_', first + 1);
  const std::string server = name.substr(0, first), client = name.substr(first + 1, second - first - 1);
  const std::string medium = name.substr(second + 1);
  std::string endpoint = "tcp://127.0.0.1:0";
  if (medium == "inproc") endpoint = "inproc://x";
  if (medium == "ipc")
    endpoint = "ipc://" + (std::filesystem::temp_directory_path() / ("mr_transport_" + std::to_string(::getpid()))).string();
  return std::make_unique<StreamKit>(server, client, endpoint);
}

class TransportTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    kit_ = MakeKit(GetParam());
    server_side_ = kit_->Make("server");
    client_side_ = kit_->Make("client");
    server_ = *server_side_->Bind(kit_->Endpoint());
  }
  std::unique_ptr<ClientSocket> Connect() { return *client_side_->Connect(server_->Endpoint()); }

  // Both sides are in this thread, and each makes progress only in its own waits.
  void Turn() {
    server_side_->Wait(0ms);
    client_side_->Wait(1ms);
    server_side_->Wait(1ms);
    client_side_->Wait(0ms);
  }
  void SendFrom(ClientSocket& client, const std::string& frame) {  // a connection takes a moment
    const MonoTime end = clock_.Now() + kPatience;
    while (!client.Send(frame)) {
      ASSERT_LT(clock_.Now(), end);
      Turn();
    }
  }
  Received AtServer() {
    const MonoTime end = clock_.Now() + kPatience;
    while (clock_.Now() < end) {
      if (auto got = server_->Receive()) return *got;
      Turn();
    }
    ADD_FAILURE() << "nothing arrived";
    return {};
  }
  std::string AtClient(ClientSocket& client) {
    const MonoTime end = clock_.Now() + kPatience;
    while (clock_.Now() < end) {
      if (auto got = client.Receive()) return *got;
      Turn();
    }
    ADD_FAILURE() << "nothing arrived";
    return {};
  }

  SystemClock clock_;
  std::unique_ptr<Kit> kit_;
  std::unique_ptr<Transport> server_side_, client_side_;
  std::unique_ptr<ServerSocket> server_;
};

TEST_P(TransportTest, ManyFramesArriveInOrderBothWays) {
  auto client = Connect();
  PeerId peer;
  for (int i = 0; i < 500; ++i) SendFrom(*client, "up " + std::to_string(i));
  for (int i = 0; i < 500; ++i) {
    const auto got = AtServer();
    ASSERT_EQ(got.frame, "up " + std::to_string(i));
    peer = got.peer;
  }
  for (int i = 0; i < 500; ++i) ASSERT_TRUE(server_->Send(peer, "down " + std::to_string(i)));
  for (int i = 0; i < 500; ++i) ASSERT_EQ(AtClient(*client), "down " + std::to_string(i));
}

TEST_P(TransportTest, PeersAreToldApart) {
  auto a = Connect(), b = Connect();
  SendFrom(*a, "a");
  const auto from_a = AtServer();
  SendFrom(*b, "b");
  const auto from_b = AtServer();
  EXPECT_NE(from_a.peer, from_b.peer);
  ASSERT_TRUE(server_->Send(from_b.peer, "for b"));
  EXPECT_EQ(AtClient(*b), "for b");
  EXPECT_FALSE(a->Receive());
}

TEST_P(TransportTest, AnUnknownPeerIsAnError) { EXPECT_EQ(server_->Send("nobody", "x").error().code, ErrorCode::kUnavailable); }

TEST_P(TransportTest, APeerThatLeftIsAnErrorSoon) {
  auto client = Connect();
  SendFrom(*client, "hello");
  const auto got = AtServer();
  client.reset();
  const MonoTime end = clock_.Now() + kPatience;
  while (server_->Send(got.peer, "are you there?")) {
    ASSERT_LT(clock_.Now(), end);
    server_side_->Wait(5ms);
  }
}

TEST_P(TransportTest, FramesUpToTheLimitPassAndLongerOnesAreRefused) {
  auto client = Connect();
  SendFrom(*client, std::string(kFrameBytesMax, 'x'));
  EXPECT_EQ(AtServer().frame.size(), kFrameBytesMax);
  EXPECT_EQ(client->Send(std::string(kFrameBytesMax + 1, 'x')).error().code, ErrorCode::kInvalidArgument);
  SendFrom(*client, "still there");
  EXPECT_EQ(AtServer().frame, "still there");
}

TEST_P(TransportTest, WakeEndsAWaitFromAnotherThreadAndIsNotLostWhenEarly) {
  const MonoTime start = clock_.Now();
  server_side_->Wake();
  server_side_->Wait(60s);
  std::jthread waker([this] { server_side_->Wake(); });
  server_side_->Wait(60s);
  EXPECT_LT(clock_.Now() - start, 30s);
  server_side_->Wait(1ms);
}

TEST_P(TransportTest, AnExtraDescriptorEndsAWait) {
  const int fd = ::eventfd(1, EFD_CLOEXEC);
  const MonoTime start = clock_.Now();
  server_side_->Wait(60s, fd);
  EXPECT_LT(clock_.Now() - start, 30s);
  ::close(fd);
}

TEST_P(TransportTest, AFrameThatArrivedBeforeTheWaitEndsIt) {
  auto client = Connect();
  for (int i = 0; i < 50; ++i) {  // an edge-triggered descriptor would lose one of these
    SendFrom(*client, "x");
    const auto got = AtServer();
    ASSERT_TRUE(server_->Send(got.peer, "y"));
    ASSERT_TRUE(server_->Send(got.peer, "z"));
    ASSERT_EQ(AtClient(*client), "y");
    const MonoTime start = clock_.Now();
    client_side_->Wait(60s);
    ASSERT_LT(clock_.Now() - start, 30s);
    ASSERT_EQ(AtClient(*client), "z");
  }
}

TEST_P(TransportTest, BindingTwiceIsAConflict) {
  EXPECT_EQ(client_side_->Bind(server_->Endpoint()).error().code, ErrorCode::kConflict);
}

INSTANTIATE_TEST_SUITE_P(All, TransportTest,
                         ::testing::Values("memory", "ours_ours_tcp", "ours_ours_inproc", "ours_ours_ipc", "ours_libzmq_tcp",
                                           "ours_libzmq_ipc", "libzmq_ours_tcp", "libzmq_ours_ipc", "libzmq_libzmq_tcp",
                                           "libzmq_libzmq_inproc", "libzmq_libzmq_ipc"),
                         [](const auto& test) { return test.param; });

TEST(EndpointTest, OnlyThisHost) {
  for (const char* good :
       {"tcp://127.0.0.1:0", "tcp://127.9.9.9:7600", "tcp://[::1]:7600", "tcp://localhost:7600", "ipc:///run/x", "inproc://x"})
    EXPECT_TRUE(CheckLocalEndpoint(good)) << good;
  for (const char* far : {"tcp://10.0.0.1:7600", "tcp://0.0.0.0:7600", "tcp://*:7600", "tcp://example.org:7600",
                          "tcp://127.evil.org:7600", "tcp://127.0.0.1;10.0.0.1:7600", "tcp://[::]:7600", "tcp://eth0:7600"})
    EXPECT_EQ(CheckLocalEndpoint(far).error().code, ErrorCode::kUnsupported) << far;
  for (const char* bad :
       {"", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:", "udp://127.0.0.1:1", "7600", "ipc://", "inproc://"})
    EXPECT_EQ(CheckLocalEndpoint(bad).error().code, ErrorCode::kInvalidArgument) << bad;
  EXPECT_EQ((*MakeZmtpTransport())->Bind("tcp://0.0.0.0:0").error().code, ErrorCode::kUnsupported);
  EXPECT_EQ((*MakeZmtpTransport())->Connect("tcp://10.0.0.1:7600").error().code, ErrorCode::kUnsupported);
  for (const std::string& none : {std::string("tcp://127.0.0.1:65536"), std::string("tcp://127.0.0.1:x"),
                                  std::string("tcp://127.0.0.1.1:7600"), "ipc:///" + std::string(200, 'x')})
    EXPECT_EQ(ParseEndpoint(none).error().code, ErrorCode::kInvalidArgument) << none;
}

TEST(HoldPortTest, NobodyIsGivenAHeldPortAndAServerThatNamesItListensThere) {
  bool alone = false;
  // A network namespace of this thread alone, with two ports to give.
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) return;
    alone = true;
    std::ofstream("/proc/sys/net/ipv4/ip_local_port_range") << "40000 40001";
    auto one = *HoldPort();
    {
      const auto two = *HoldPort();
      EXPECT_EQ(one.number + two.number, 80001);
      const auto three = HoldPort();
      EXPECT_EQ(three ? ErrorCode::kConflict : three.error().code, ErrorCode::kUnavailable);
      for (int again = 0; again < 2; ++again)
        EXPECT_TRUE(Listen(*ParseEndpoint("tcp://127.0.0.1:" + std::to_string(one.number))));
    }
    const auto two = HoldPort();
    EXPECT_TRUE(two);
    EXPECT_NE(two->number, one.number);
  }).join();
  if (!alone) GTEST_SKIP() << "not allowed to make a network namespace";
}

TEST(ZmtpTransportTest, AClientFindsAServerThatRestarts) {
  const SystemClock clock;
  auto transport = *MakeZmtpTransport();
  auto server = *transport->Bind("tcp://127.0.0.1:0");
  const std::string endpoint = server->Endpoint();
  auto client = *transport->Connect(endpoint);
  std::set<PeerId> peers;
  for (int round = 0; round < 2; ++round) {
    std::optional<Received> got;
    const MonoTime end = clock.Now() + kPatience;
    while (!got) {
      ASSERT_LT(clock.Now(), end);
      (void)client->Send("hello");  // what goes out while the server is away may be lost
      transport->Wait(20ms);
      got = server->Receive();
    }
    server.reset();
    for (auto again = transport->Bind(endpoint); !server; again = transport->Bind(endpoint)) {
      ASSERT_LT(clock.Now(), end);
      if (again) server = std::move(*again);
      transport->Wait(20ms);
    }
  }
}

}  // namespace
}  // namespace millrace::wire
