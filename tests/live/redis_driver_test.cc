// The Redis driver against sockets that misbehave and against a real server (MILLRACE_TEST_REDIS).
#include "common/drivers/redis.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

namespace millrace::redis {
namespace {

// A TCP listener on 127.0.0.1 whose accepted side a test plays.
class Listener {
 public:
  Listener() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(fd_, 4), 0);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    endpoint.host = "127.0.0.1";
    endpoint.port = ntohs(address.sin_port);
  }
  ~Listener() { Close(); }
  // Answers the PING of one connection with PONG and its next command with `bytes`.
  void Serve(const std::string& bytes) const {
    const int peer = ::accept(fd_, nullptr, nullptr);
    char buffer[4096];
    for (const std::string& answer : {std::string("+PONG\r\n"), bytes}) {
      if (::recv(peer, buffer, sizeof buffer, 0) <= 0) break;
      if (::send(peer, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) break;
    }
    while (::recv(peer, buffer, sizeof buffer, 0) > 0) {
    }
    ::close(peer);
  }
  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  Endpoint endpoint;

 private:
  int fd_;
};

#define MILLRACE_NEEDS_REDIS()                                                    \
  const char* address = std::getenv("MILLRACE_TEST_REDIS");                       \
  if (address == nullptr) {                                                       \
    if (std::getenv("CI") != nullptr) FAIL() << "MILLRACE_TEST_REDIS is not set"; \
    GTEST_SKIP() << "MILLRACE_TEST_REDIS is not set: no Redis to test against";   \
  }                                                                               \
  const SystemClock clock

TEST(RedisEndpointTest, ParsesAndRefuses) {
  const auto full = ParseEndpoint("redis://u:p%w@db.example:7000/3");
  ASSERT_TRUE(full);
  EXPECT_EQ(full->ToString(), "db.example:7000/3");
  EXPECT_EQ(full->user, "u");
  EXPECT_EQ(full->password.Reveal(), "p%w");
  EXPECT_EQ(ParseEndpoint("[::1]:6380")->ToString(), "[::1]:6380");
  EXPECT_EQ(ParseEndpoint("unix:/run/r.sock")->unix_path, "/run/r.sock");
  for (const char* bad :
       {"", "host", "host:0", "host:65536", "host:6379x", ":6379", "redis://secret@h:1", "[::1:1", "unix:rel"}) {
    const auto endpoint = ParseEndpoint(bad);
    ASSERT_FALSE(endpoint) << bad;
    EXPECT_EQ(endpoint.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(endpoint.error().message.find("secret"), std::string::npos);
  }
  EXPECT_EQ(ParseEndpoint("rediss://h:1").error().code, ErrorCode::kUnsupported);
}

TEST(RedisReplyTest, ErrorsAreClassified) {
  EXPECT_EQ(ClassifyErrorReply("OOM command not allowed"), ErrorCode::kLimit);
  for (const char* text : {"MISCONF Redis", "READONLY You", "LOADING Redis", "NOSCRIPT No"})
    EXPECT_EQ(ClassifyErrorReply(text), ErrorCode::kUnavailable) << text;
  for (const char* text : {"NOAUTH Authentication required", "WRONGPASS x", "WRONGTYPE x", "ERR syntax"})
    EXPECT_EQ(ClassifyErrorReply(text), ErrorCode::kRejected) << text;
  const std::string script = "ERR Error running script (call to f_1): @user_script:46: @user_script: 46: -";
  EXPECT_EQ(ClassifyErrorReply(script + "OOM command not allowed"), ErrorCode::kLimit);
  EXPECT_EQ(ClassifyErrorReply(script + "WRONGTYPE Operation"), ErrorCode::kRejected);
}

TEST(RedisDriverTest, ConnectionRefusedIsUnavailable) {
  Listener listener;
  listener.Close();
  const SystemClock clock;
  const auto connection = Connection::Connect(listener.endpoint, {}, clock.Now() + 1s);
  ASSERT_FALSE(connection);
  EXPECT_EQ(connection.error().code, ErrorCode::kUnavailable);
}

TEST(RedisDriverTest, AServerThatNeverAnswersIsGivenUpAtTheDeadline) {
  Listener listener;
  const SystemClock clock;
  const MonoTime start = clock.Now();
  const auto connection = Connection::Connect(listener.endpoint, {}, start + 200ms);
  ASSERT_FALSE(connection);
  EXPECT_EQ(connection.error().code, ErrorCode::kUnavailable) << connection.error().message;
  EXPECT_LT(clock.Now() - start, 6s);
}

TEST(RedisDriverTest, AnswersThatAreNotRedisCloseTheConnection) {
  const SystemClock clock;
  const std::pair<const char*, const char*> cases[] = {
      {"HTTP/1.1 400 Bad Request\r\n", "not a redis reply"},
      {"*2147483647\r\n", "not a redis reply"},
      {"*1048576\r\n*1048576\r\n", "not a redis reply"},  // twenty bytes that ask for a million times a million elements
      {"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", "not a redis reply"},
      {"+OK\r\n+OK\r\n", "more replies than commands"},
      {"$99\r\nshort", "no answer before the deadline"},
  };
  for (const auto& [bytes, said] : cases) {
    Listener listener;
    std::jthread server([&] { listener.Serve(bytes); });
    auto connection = Connection::Connect(listener.endpoint, {}, clock.Now() + 5s);
    ASSERT_TRUE(connection) << connection.error().message;
    const auto reply = connection->Call({"GET", "x"}, clock.Now() + 300ms);
    ASSERT_FALSE(reply) << bytes;
    EXPECT_EQ(reply.error().code, ErrorCode::kMaybeApplied);
    EXPECT_NE(reply.error().message.find(said), std::string::npos) << reply.error().message;
    EXPECT_FALSE(connection->open());
  }
}

TEST(RedisDriverTest, ASlowAnswerIsMaybeApplied) {
  MILLRACE_NEEDS_REDIS();
  auto connection = *Connection::Connect(*ParseEndpoint(address), {}, clock.Now() + 3s);
  const MonoTime start = clock.Now();
  const auto reply = connection.Call({"BLPOP", "millrace_test_never", "20"}, start + 150ms);
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, ErrorCode::kMaybeApplied);
  EXPECT_LT(clock.Now() - start, 6s);
  EXPECT_FALSE(connection.open());
  EXPECT_EQ(connection.Call({"PING"}, clock.Now() + 1s).error().code, ErrorCode::kUnavailable);
}

TEST(RedisDriverTest, ConnectionKilledInMidPipeline) {
  MILLRACE_NEEDS_REDIS();
  auto connection = *Connection::Connect(*ParseEndpoint(address), {}, clock.Now() + 3s);
  connection.Append({"ECHO", "one"});
  connection.Append({"QUIT"});
  connection.Append({"ECHO", "never"});
  const auto replies = connection.Flush(clock.Now() + 3s);
  ASSERT_EQ(replies.size(), 3u);
  ASSERT_TRUE(replies[0]);
  EXPECT_EQ(replies[0]->text, "one");
  ASSERT_FALSE(replies[2]);
  EXPECT_EQ(replies[2].error().code, ErrorCode::kMaybeApplied);
}

TEST(RedisDriverTest, AReplyThatIsTooLargeClosesTheConnection) {
  MILLRACE_NEEDS_REDIS();
  auto connection = *Connection::Connect(*ParseEndpoint(address), {.reply_bytes_max = 100'000}, clock.Now() + 3s);
  const auto reply = connection.Call({"EVAL", "return string.rep('x', 1000000)", "0"}, clock.Now() + 3s);
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, ErrorCode::kMaybeApplied);
  EXPECT_FALSE(connection.open());
}

TEST(RedisDriverTest, ALostScriptIsLoadedAgainInOrder) {
  MILLRACE_NEEDS_REDIS();
  auto connection = *Connection::Connect(*ParseEndpoint(address), {}, clock.Now() + 3s);
  auto script = *connection.Load(fmt::format("return ARGV[1] .. '{}'", ::getpid()), clock.Now() + 3s);
  connection.Append({"SCRIPT", "FLUSH"});
  for (const std::string_view argument : {"a", "b"}) connection.AppendScript(script, {}, std::span{&argument, 1});
  const auto replies = connection.Flush(clock.Now() + 3s);
  ASSERT_EQ(replies.size(), 3u);
  EXPECT_EQ(replies[1]->text, fmt::format("a{}", ::getpid()));
  EXPECT_EQ(replies[2]->text, fmt::format("b{}", ::getpid()));
}

}  // namespace
}  // namespace millrace::redis
