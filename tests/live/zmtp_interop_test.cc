// Our ZMTP and sockets of libzmq that are set up otherwise than ours would be: identities, heartbeats, kinds of sockets that
// are refused, restarts. What every Transport does with libzmq at the other end is in tests/conformance/transport_test.cc.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <zmq.hpp>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::wire {
namespace {

using namespace std::literals;

constexpr auto kPatience = Millis{20'000};

class ZmtpInteropTest : public ::testing::Test {
 protected:
  template <class Condition>
  void TurnUntil(Condition condition) {
    const MonoTime end = clock_.Now() + kPatience;
    while (!condition()) {
      ASSERT_LT(clock_.Now(), end);
      transport_->Wait(1ms);
    }
  }
  void TurnFor(Millis time) {
    const MonoTime end = clock_.Now() + time;
    while (clock_.Now() < end) transport_->Wait(5ms);
  }
  zmq::socket_t Peer(zmq::socket_type type) {
    zmq::socket_t peer(context_, type);
    peer.set(zmq::sockopt::linger, 0);
    peer.set(zmq::sockopt::immediate, true);
    return peer;
  }
  static bool Send(zmq::socket_t& socket, std::string_view frame) {
    return socket.send(zmq::buffer(frame), zmq::send_flags::dontwait).has_value();
  }
  static std::optional<std::string> Receive(zmq::socket_t& socket) {
    zmq::message_t message;
    if (!socket.recv(message, zmq::recv_flags::dontwait)) return std::nullopt;
    return message.to_string();
  }

  SystemClock clock_;
  zmq::context_t context_{1};
  const ZmtpTimes times_{.heartbeat = 200ms, .heartbeat_timeout = 600ms};
  std::unique_ptr<Transport> transport_ = *MakeZmtpTransport(nullptr, times_);
};

TEST_F(ZmtpInteropTest, ADealerWithAnIdentityIsKnownByIt) {
  auto server = *transport_->Bind("tcp://127.0.0.1:0");
  auto dealer = Peer(zmq::socket_type::dealer);
  dealer.set(zmq::sockopt::routing_id, "worker-7");
  dealer.connect(server->Endpoint());
  std::optional<Received> got;
  TurnUntil([&] { return Send(dealer, "hello"); });
  TurnUntil([&] { return (got = server->Receive()).has_value(); });
  EXPECT_EQ(got->peer, "worker-7");
  EXPECT_EQ(got->frame, "hello");
  ASSERT_TRUE(server->Send("worker-7", std::string(kFrameBytesMax, 'y')));
  std::optional<std::string> answer;
  TurnUntil([&] { return (answer = Receive(dealer)).has_value(); });
  EXPECT_EQ(answer->size(), kFrameBytesMax);
}

TEST_F(ZmtpInteropTest, SocketsOfOtherKindsAreRefused) {
  auto server = *transport_->Bind("tcp://127.0.0.1:0");
  for (const auto type : {zmq::socket_type::req, zmq::socket_type::pub, zmq::socket_type::router, zmq::socket_type::push}) {
    auto peer = Peer(type);
    auto monitor = Peer(zmq::socket_type::pair);
    zmq_socket_monitor(peer.handle(), "inproc://monitor", ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    monitor.connect("inproc://monitor");
    peer.connect(server->Endpoint());
    const MonoTime end = clock_.Now() + 500ms;
    while (clock_.Now() < end) {
      transport_->Wait(5ms);
      if (type != zmq::socket_type::router) {
        try {
          Send(peer, "anything");
        } catch (const zmq::error_t&) {  // a REQ that waits for its answer
        }
      }
      EXPECT_FALSE(server->Receive());
    }
    EXPECT_FALSE(Receive(monitor)) << "a handshake succeeded";
    zmq_socket_monitor(peer.handle(), nullptr, 0);
  }
}

TEST_F(ZmtpInteropTest, HeartbeatsOfBothSidesKeepAnIdleConnection) {
  auto server = *transport_->Bind("tcp://127.0.0.1:0");
  auto dealer = Peer(zmq::socket_type::dealer);
  dealer.set(zmq::sockopt::heartbeat_ivl, 100);
  dealer.set(zmq::sockopt::heartbeat_timeout, 300);
  dealer.set(zmq::sockopt::heartbeat_ttl, 300);
  dealer.connect(server->Endpoint());
  std::optional<Received> first, second;
  TurnUntil([&] { return Send(dealer, "first"); });
  TurnUntil([&] { return (first = server->Receive()).has_value(); });
  TurnFor(3 * times_.heartbeat_timeout);
  TurnUntil([&] { return Send(dealer, "second"); });
  TurnUntil([&] { return (second = server->Receive()).has_value(); });
  EXPECT_EQ(first->peer, second->peer);  // the same connection
  ASSERT_TRUE(server->Send(first->peer, "answer"));
  TurnUntil([&] { return Receive(dealer) == "answer"; });
}

TEST_F(ZmtpInteropTest, ADealerThatSendsPartsOrAnEmptyDelimiterIsNotMisread) {
  auto server = *transport_->Bind("tcp://127.0.0.1:0");
  auto dealer = Peer(zmq::socket_type::dealer);
  dealer.connect(server->Endpoint());
  TurnUntil([&] { return dealer.send(zmq::str_buffer(""), zmq::send_flags::dontwait | zmq::send_flags::sndmore).has_value(); });
  dealer.send(zmq::str_buffer("after a delimiter"), zmq::send_flags::none);
  Send(dealer, "alone");
  std::optional<Received> got;
  TurnUntil([&] { return (got = server->Receive()).has_value(); });
  EXPECT_EQ(got->frame, "alone");
}

TEST_F(ZmtpInteropTest, ARouterThatRestartsIsFoundAgain) {
  auto router = std::make_unique<zmq::socket_t>(Peer(zmq::socket_type::router));
  router->bind("tcp://127.0.0.1:*");
  const auto endpoint = router->get(zmq::sockopt::last_endpoint);
  auto client = *transport_->Connect(endpoint);
  for (int round = 0; round < 2; ++round) {
    std::optional<std::string> peer;
    TurnUntil([&] { return client->Send("hello").has_value(); });
    TurnUntil([&] { return (peer = Receive(*router)).has_value(); });
    EXPECT_EQ(Receive(*router), "hello");
    router->send(zmq::buffer(*peer), zmq::send_flags::sndmore);
    router->send(zmq::str_buffer("parts"), zmq::send_flags::sndmore);
    router->send(zmq::str_buffer("of one"), zmq::send_flags::none);
    router->send(zmq::buffer(*peer), zmq::send_flags::sndmore);
    router->send(zmq::str_buffer("alone"), zmq::send_flags::none);
    std::optional<std::string> answer;
    TurnUntil([&] { return (answer = client->Receive()).has_value(); });
    EXPECT_EQ(answer, "alone");
    if (round == 1) break;
    router.reset();
    TurnUntil([&] { return !client->Send("are you there?"); });
    router = std::make_unique<zmq::socket_t>(Peer(zmq::socket_type::router));
    TurnUntil([&] {
      try {
        router->bind(endpoint);
        return true;
      } catch (const zmq::error_t&) {  // libzmq closes in the background
        return false;
      }
    });
  }
}

TEST_F(ZmtpInteropTest, OurClientWantsARouter) {
  for (const auto type : {zmq::socket_type::rep, zmq::socket_type::dealer, zmq::socket_type::pull}) {
    auto peer = Peer(type);
    peer.bind("tcp://127.0.0.1:*");
    auto client = *transport_->Connect(peer.get(zmq::sockopt::last_endpoint));
    const MonoTime end = clock_.Now() + 300ms;
    while (clock_.Now() < end) {
      transport_->Wait(5ms);
      EXPECT_EQ(client->Send("x").error().code, ErrorCode::kUnavailable);
    }
  }
}

}  // namespace
}  // namespace millrace::wire
