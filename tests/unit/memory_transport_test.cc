#include "tests/support/memory_transport.h"

#include <gtest/gtest.h>

#include <thread>

namespace millrace::testing {
namespace {

class MemoryTransportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_ = *server_side_->Bind("mem://broker");
    client_ = *client_side_->Connect("mem://broker");
  }
  FakeClock clock_;
  SeededRandom random_{1};
  MemoryNetwork network_{clock_, random_};
  std::unique_ptr<wire::Transport> server_side_ = network_.MakeTransport("broker", false);
  std::unique_ptr<wire::Transport> client_side_ = network_.MakeTransport("worker", false);
  std::unique_ptr<wire::ServerSocket> server_;
  std::unique_ptr<wire::ClientSocket> client_;
};

TEST_F(MemoryTransportTest, DeliversInOrderBothWays) {
  ASSERT_TRUE(client_->Send("one"));
  ASSERT_TRUE(client_->Send("two"));
  const auto one = server_->Receive();
  ASSERT_TRUE(one);
  EXPECT_EQ(one->frame, "one");
  EXPECT_EQ(server_->Receive()->frame, "two");
  EXPECT_FALSE(server_->Receive());
  ASSERT_TRUE(server_->Send(one->peer, "three"));
  EXPECT_EQ(client_->Receive(), "three");
  EXPECT_FALSE(client_->Receive());
}

TEST_F(MemoryTransportTest, PeersAreDistinctAndGoneOnesAreErrors) {
  auto other = *client_side_->Connect("mem://broker");
  ASSERT_TRUE(client_->Send("a"));
  ASSERT_TRUE(other->Send("b"));
  const auto a = server_->Receive(), b = server_->Receive();
  ASSERT_TRUE(a && b);
  EXPECT_NE(a->peer, b->peer);
  other.reset();
  EXPECT_EQ(server_->Send(b->peer, "x").error().code, ErrorCode::kUnavailable);
  server_.reset();
  EXPECT_EQ(client_->Send("x").error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(server_side_->Bind("mem://broker"));
}

TEST_F(MemoryTransportTest, BindTwiceIsAConflict) {
  EXPECT_EQ(client_side_->Bind("mem://broker").error().code, ErrorCode::kConflict);
}

TEST_F(MemoryTransportTest, DelaysByTheClock) {
  network_.SetFaults({.delay_min = 10ms, .delay_max = 10ms});
  ASSERT_TRUE(client_->Send("late"));
  EXPECT_FALSE(server_->Receive());
  clock_.Advance(10ms);
  EXPECT_EQ(server_->Receive()->frame, "late");
}

TEST_F(MemoryTransportTest, DropsAndDuplicates) {
  network_.SetFaults({.drop_ppm = 1'000'000});
  ASSERT_TRUE(client_->Send("lost"));
  EXPECT_FALSE(server_->Receive());
  network_.SetFaults({.duplicate_ppm = 1'000'000});
  ASSERT_TRUE(client_->Send("twice"));
  EXPECT_EQ(server_->Receive()->frame, "twice");
  EXPECT_EQ(server_->Receive()->frame, "twice");
  EXPECT_FALSE(server_->Receive());
  EXPECT_EQ(network_.counts().dropped, 1u);
  EXPECT_EQ(network_.counts().duplicated, 1u);
}

TEST_F(MemoryTransportTest, APartitionLosesWhatIsUnderWayAndHeals) {
  ASSERT_TRUE(client_->Send("under way"));
  network_.Partition("worker", "broker");
  ASSERT_TRUE(client_->Send("into the void"));
  EXPECT_FALSE(server_->Receive());
  network_.Heal();
  EXPECT_FALSE(server_->Receive());
  ASSERT_TRUE(client_->Send("back"));
  EXPECT_EQ(server_->Receive()->frame, "back");
}

TEST_F(MemoryTransportTest, AfterADisconnectThePeerHasANewId) {
  ASSERT_TRUE(client_->Send("a"));
  const auto before = server_->Receive();
  ASSERT_TRUE(server_->Send(before->peer, "lost with the connection"));
  network_.Disconnect("mem://broker");
  EXPECT_FALSE(client_->Receive());
  EXPECT_FALSE(server_->Send(before->peer, "x"));
  ASSERT_TRUE(client_->Send("b"));
  EXPECT_NE(server_->Receive()->peer, before->peer);
}

TEST_F(MemoryTransportTest, TheSameSeedGivesTheSameTrace) {
  const auto trace = [] {
    FakeClock clock;
    SeededRandom random(42);
    MemoryNetwork network(clock, random);
    auto a = network.MakeTransport("a", false), b = network.MakeTransport("b", false);
    auto server = *a->Bind("x");
    auto client = *b->Connect("x");
    network.SetFaults({.drop_ppm = 200'000, .duplicate_ppm = 200'000, .delay_min = 0us, .delay_max = 5ms});
    std::string seen;
    for (int i = 0; i < 200; ++i) {
      EXPECT_TRUE(client->Send(std::to_string(i)));
      clock.Advance(1ms);
      while (auto got = server->Receive()) seen += got->frame + ",";
    }
    return seen;
  };
  const std::string first = trace();
  EXPECT_EQ(first, trace());
  EXPECT_GT(first.size(), 300u);
}

TEST(MemoryTransportWaitTest, WakeAndFramesEndAWait) {
  const SystemClock clock;
  SeededRandom random(1);
  MemoryNetwork network(clock, random);
  auto a = network.MakeTransport("a"), b = network.MakeTransport("b");
  auto server = *a->Bind("x");
  auto client = *b->Connect("x");
  const MonoTime start = clock.Now();
  std::jthread waker([&] { a->Wake(); });
  a->Wait(30s);
  ASSERT_TRUE(client->Send("hello"));
  a->Wait(30s);
  EXPECT_EQ(server->Receive()->frame, "hello");
  EXPECT_LT(clock.Now() - start, 10s);
}

}  // namespace
}  // namespace millrace::testing
