// What a command hears of a broker that refuses, answers late or not at all, over a transport that is played.
#include "client/cli/broker_client.h"

#include <gmock/gmock.h>

#include <deque>
#include <functional>
#include <utility>

namespace millrace::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A broker that answers each message with what `answer` says: at once, or (nothing) never.
struct Played {
  FakeClock clock;
  std::function<std::optional<wire::Message>(const wire::Message&)> answer;
  std::deque<std::string> replies;
  std::size_t sent = 0;
};

class PlayedSocket final : public wire::ClientSocket {
 public:
  explicit PlayedSocket(Played& played) : played_(played) {}
  Result<void> Send(std::string frame) override {
    ++played_.sent;
    if (auto reply = played_.answer(*wire::Decode(frame))) played_.replies.push_back(wire::Encode(*reply));
    return {};
  }
  std::optional<std::string> Receive() override {
    if (played_.replies.empty()) return std::nullopt;
    std::string frame = std::move(played_.replies.front());
    played_.replies.pop_front();
    return frame;
  }

 private:
  Played& played_;
};

class PlayedTransport final : public wire::Transport {
 public:
  explicit PlayedTransport(Played& played) : played_(played) {}
  Result<std::unique_ptr<wire::ServerSocket>> Bind(const std::string&) override {
    return Fail(ErrorCode::kUnsupported, "a client's");
  }
  Result<std::unique_ptr<wire::ClientSocket>> Connect(const std::string&) override {
    return std::unique_ptr<wire::ClientSocket>(std::make_unique<PlayedSocket>(played_));
  }
  void Wait(Micros timeout, int) override { played_.clock.Advance(timeout); }
  void Flush() override {}
  void Wake() override {}

 private:
  Played& played_;
};

class BrokerClientTest : public ::testing::Test {
 protected:
  Result<void> Submit(Millis patience) {
    std::vector<wire::SubmitReply::Item> answers;
    return client_.SubmitJobs(std::vector<JobSpec>(1), played_.clock.Now() + patience, answers);
  }
  static wire::Message Full(const wire::Message& m) {
    return wire::Problem{
        .request = std::get<wire::SubmitJobs>(m).request, .code = "queue_full", .message = "queue 'mail' holds 9"};
  }
  Played played_;
  MonoTime end_{};
  PlayedTransport transport_{played_};
  BrokerClient client_ = *BrokerClient::Connect(transport_, "inproc://played", played_.clock);
};

TEST_F(BrokerClientTest, ARefusalIsRepeatedAndItsReasonIsTheAnswer) {
  played_.answer = [](const wire::Message& m) { return Full(m); };
  const auto refused = Submit(Millis{30'000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kLimit);
  EXPECT_EQ(refused.error().message, "queue_full: queue 'mail' holds 9");
  EXPECT_GT(played_.sent, 100U) << "it may drain meanwhile";
}

// Each answer takes longer than what is left at the end.
TEST_F(BrokerClientTest, ATryThatIsTooLateForAnAnswerDoesNotHideTheReason) {
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    played_.clock.Advance(Millis{50});
    if (played_.clock.Now() >= end_ - Millis{200}) return std::nullopt;
    return Full(m);
  };
  end_ = played_.clock.Now() + Millis{5000};
  const auto refused = Submit(Millis{5000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kLimit) << refused.error().message;
  EXPECT_EQ(refused.error().message, "queue_full: queue 'mail' holds 9");
}

// Whether the last try was taken is not known, so it is no refusal.
TEST_F(BrokerClientTest, ABrokerThatFallsSilentIsSaidWithTheRefusalBefore) {
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    if (played_.sent > 1) return std::nullopt;
    return Full(m);
  };
  const auto silent = Submit(Millis{10'000});
  ASSERT_FALSE(silent);
  EXPECT_EQ(silent.error().code, ErrorCode::kTimedOut);
  EXPECT_THAT(silent.error().message, HasSubstr("did not answer; before that: queue_full: queue 'mail' holds 9"));
}

TEST_F(BrokerClientTest, ABrokerThatNeverAnsweredHasRefusedNothing) {
  played_.answer = [](const wire::Message&) { return std::nullopt; };
  const auto silent = Submit(Millis{10'000});
  ASSERT_FALSE(silent);
  EXPECT_EQ(silent.error().code, ErrorCode::kTimedOut);
  EXPECT_THAT(silent.error().message, Not(HasSubstr("before that")));
  EXPECT_EQ(played_.sent, 4U) << "each try has 3 s";
}

// Whoever writes into the ledger in the place of a broker must know whether one may have taken the jobs.
TEST_F(BrokerClientTest, ItIsKnownWhetherAnEarlierTryMayHaveBeenTaken) {
  bool answers = true;
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    if (!std::exchange(answers, true)) return std::nullopt;
    return wire::Problem{.request = std::get<wire::SubmitJobs>(m).request, .code = "not_owner", .message = "of 'b2'"};
  };
  const auto first = Submit(Millis{10'000});
  ASSERT_FALSE(first);
  EXPECT_TRUE(BrokerClient::IsNotOwner(first.error()));
  EXPECT_FALSE(client_.sent_before());
  answers = false;
  const auto second = Submit(Millis{10'000});
  ASSERT_FALSE(second);
  EXPECT_TRUE(BrokerClient::IsNotOwner(second.error()));
  EXPECT_TRUE(client_.sent_before());
}

TEST_F(BrokerClientTest, PagesOfKeptJobsAreAskedForUntilTheLastOneAndEachJobCountsOnce) {
  const JobId a{Uuid{{1}}}, b{Uuid{{2}}}, c{Uuid{{3}}};
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    const auto& list = std::get<wire::ListKept>(m);
    EXPECT_EQ(list.queue, "mail");
    if (list.cursor.empty()) return wire::ListKeptReply{.request = list.request, .jobs = {a, b}, .cursor = "here"};
    EXPECT_EQ(list.cursor, "here");
    return wire::ListKeptReply{.request = list.request, .jobs = {b, c}, .cursor = {}};
  };
  const auto all = client_.ListKept(kDefaultOrg, "mail", "", 3, Millis{1000});
  ASSERT_TRUE(all) << all.error().message;
  EXPECT_EQ(*all, (std::vector{a, b, c}));
  EXPECT_EQ(client_.ListKept(kDefaultOrg, "mail", "", 2, Millis{1000}).error().code, ErrorCode::kLimit);
}

}  // namespace
}  // namespace millrace::cli
