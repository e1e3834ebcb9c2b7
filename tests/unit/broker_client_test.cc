// What a command hears of a broker that refuses, answers late or not at all, over a transport that is played.
#include "client/cli/broker_client.h"

#include <gmock/gmock.h>

#include <deque>
#include <functional>
#include <utility>

namespace millrace::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// A broker that answers each message with what `answer` says: at once, or (nothing) never.
struct Played {
  FakeClock clock;
  std::function<std::optional<wire::Message>(const wire::Message&)> answer;
  std::deque<std::string> replies;
  std::deque<std::pair<MonoTime, wire::Message>> late;  // answers that come then; in order
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
    if (!played_.late.empty() && played_.late.front().first <= played_.clock.Now()) {
      std::string frame = wire::Encode(played_.late.front().second);
      played_.late.pop_front();
      return frame;
    }
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

constexpr auto kAll = [](const JobId&) { return true; };

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
  EXPECT_FALSE(client_.in_doubt());
  answers = false;
  const auto second = Submit(Millis{10'000});
  ASSERT_FALSE(second);
  EXPECT_TRUE(BrokerClient::IsNotOwner(second.error()));
  EXPECT_TRUE(client_.in_doubt());
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
  const auto all = client_.ListKept(kDefaultOrg, "mail", "", kAll, 3, Millis{1000});
  ASSERT_TRUE(all) << all.error().message;
  EXPECT_EQ(all->jobs, (std::vector{a, b, c}));
  EXPECT_FALSE(all->more);
  const auto two = client_.ListKept(kDefaultOrg, "mail", "", kAll, 2, Millis{1000});
  ASSERT_TRUE(two) << two.error().message;
  EXPECT_EQ(two->jobs, (std::vector{a, b})) << "as many as were asked for";
  EXPECT_TRUE(two->more);
  // What is not meant does not count.
  const auto none = client_.ListKept(kDefaultOrg, "mail", "", [](const JobId&) { return false; }, 1, Millis{1000});
  ASSERT_TRUE(none) << none.error().message;
  EXPECT_TRUE(none->jobs.empty());
  EXPECT_FALSE(none->more);
}

TEST_F(BrokerClientTest, AListOfKeptJobsThatChangesTooMuchIsReadAgainFromTheBeginning) {
  const JobId a{Uuid{{1}}}, b{Uuid{{2}}}, c{Uuid{{3}}};
  int beginnings = 0, stale = 2;
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    const auto& list = std::get<wire::ListKept>(m);
    if (list.cursor.empty()) {
      ++beginnings;
      return wire::ListKeptReply{.request = list.request, .jobs = {a, b}, .cursor = "here"};
    }
    if (stale-- > 0) return wire::Problem{.request = list.request, .code = "stale", .message = "again"};
    return wire::ListKeptReply{.request = list.request, .jobs = {c}, .cursor = {}};
  };
  const auto all = client_.ListKept(kDefaultOrg, "mail", "", kAll, 3, Millis{1000});
  ASSERT_TRUE(all) << all.error().message;
  EXPECT_EQ(all->jobs, (std::vector{a, b, c}));
  EXPECT_EQ(beginnings, 3);
  stale = 1000;
  beginnings = 0;
  const auto never = client_.ListKept(kDefaultOrg, "mail", "", kAll, 3, Millis{1000});
  ASSERT_FALSE(never);
  EXPECT_EQ(never.error().code, ErrorCode::kStale);
  EXPECT_EQ(beginnings, 20);
}

TEST_F(BrokerClientTest, KeptJobsAreLookedForUntilAllAreFoundOrTheTimeForAllPagesIsOver) {
  const JobId a{Uuid{{1}}}, b{Uuid{{2}}}, c{Uuid{{3}}};
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {  // no page is the last one
    const auto& list = std::get<wire::ListKept>(m);
    played_.late.emplace_back(played_.clock.Now() + Millis{400},
                              wire::ListKeptReply{.request = list.request, .jobs = {a, a, b}, .cursor = "here"});
    return std::nullopt;
  };
  std::vector<JobId> found;
  const MonoTime start = played_.clock.Now();
  const auto both = client_.FindKept(kDefaultOrg, {a, b}, start + Millis{10'000}, found);
  ASSERT_TRUE(both) << both.error().message;
  EXPECT_EQ(found, (std::vector{a, b}));
  EXPECT_EQ(played_.sent, 1U) << "there is nothing left to look for";
  found.clear();
  const MonoTime again = played_.clock.Now();
  const auto never = client_.FindKept(kDefaultOrg, {a, c}, again + Millis{2000}, found);
  ASSERT_FALSE(never);
  EXPECT_EQ(never.error().code, ErrorCode::kTimedOut);
  EXPECT_EQ(found, std::vector{a}) << "what was seen counts";
  EXPECT_LT(played_.clock.Now() - again, Millis{2500});
}

// The broker was slow, and refuses the second sending of what it took with the first.
TEST_F(BrokerClientTest, ALateAnswerToAnEarlierSendingCounts) {
  const MonoTime start = played_.clock.Now();
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    const std::uint64_t request = std::get<wire::SubmitJobs>(m).request;
    if (request > 1) return Full(m);
    played_.late.emplace_back(start + Millis{3200},
                              wire::SubmitReply{.request = request, .accepted = std::vector<wire::SubmitReply::Item>(1)});
    return std::nullopt;
  };
  const auto submitted = Submit(Millis{30'000});
  EXPECT_TRUE(submitted) << submitted.error().message;
  EXPECT_GT(played_.sent, 1U);
  EXPECT_LT(played_.clock.Now() - start, Millis{3600});
}

TEST_F(BrokerClientTest, ARefusalAfterASendingThatNobodyAnsweredIsNone) {
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    if (played_.sent == 1) return std::nullopt;
    return Full(m);
  };
  const auto refused = Submit(Millis{30'000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kMaybeApplied);
  EXPECT_THAT(refused.error().message,
              AllOf(HasSubstr("queue_full: queue 'mail' holds 9"), HasSubstr("1 jobs was sent before")));
}

// A late refusal is an answer: nothing is in doubt then, and the latest sending is waited for.
TEST_F(BrokerClientTest, ALateRefusalOfAnEarlierSendingIsOne) {
  const MonoTime start = played_.clock.Now();
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    if (played_.sent > 1 && played_.clock.Now() > start + Millis{4000}) return Full(m);
    played_.late.emplace_back(start + Millis{3500 + 500 * static_cast<int>(played_.sent)}, Full(m));
    return std::nullopt;
  };
  const auto refused = Submit(Millis{30'000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kLimit) << refused.error().message;
}

TEST_F(BrokerClientTest, ARefusalAfterAnUnknownOutcomeIsNone) {
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    const std::uint64_t request = std::get<wire::SubmitJobs>(m).request;
    if (request == 1) return wire::Problem{.request = request, .code = "unavailable", .message = "the outcome is not known"};
    return Full(m);
  };
  EXPECT_EQ(Submit(Millis{30'000}).error().code, ErrorCode::kMaybeApplied);
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    return wire::Problem{.request = std::get<wire::SubmitJobs>(m).request, .code = "unavailable", .message = "not now"};
  };
  EXPECT_EQ(Submit(Millis{30'000}).error().code, ErrorCode::kMaybeApplied) << "any of them may have been the unknown one";
  // The broker is gone after its answer.
  played_.sent = 0;
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    if (played_.sent > 1) return std::nullopt;
    return wire::Problem{.request = std::get<wire::SubmitJobs>(m).request, .code = "unavailable", .message = "not known"};
  };
  EXPECT_NE(Submit(Millis{10'000}).error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(client_.in_doubt());
}

// Whoever serves the shard is asked through the ledger, unless the ledger does not take it.
TEST_F(BrokerClientTest, AnotherOwnerIsStillNamedAfterASilenceUnlessOnlyTheQueueTakesTheJob) {
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    if (played_.sent == 1) return std::nullopt;
    return wire::Problem{.request = std::get<wire::SubmitJobs>(m).request, .code = "not_owner", .message = "b serves it"};
  };
  auto refused = Submit(Millis{30'000});
  ASSERT_FALSE(refused);
  EXPECT_TRUE(BrokerClient::IsNotOwner(refused.error())) << refused.error().message;
  played_.sent = 0;
  std::vector<JobSpec> jobs(1);
  jobs[0].options.durability = Durability::kRedis;
  std::vector<wire::SubmitReply::Item> answers;
  refused = client_.SubmitJobs(jobs, played_.clock.Now() + Millis{30'000}, answers);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kMaybeApplied);
}

class CancelClientTest : public BrokerClientTest {
 protected:
  static wire::Message Effect(const wire::Message& m, CancelEffect effect, std::string state) {
    const auto& cancel = std::get<wire::Cancel>(m);
    wire::CancelReply reply{.request = cancel.request, .items = {}};
    for (const auto& item : cancel.items) reply.items.push_back({.id = item.id, .effect = effect, .state = state});
    return reply;
  }
  Result<std::vector<wire::CancelReply::Item>> Cancel() {
    return client_.Cancel({.org = kDefaultOrg, .items = {{.id = Uuid{{1}}, .is_run = false}}, .actor = "me", .reason = {}},
                          played_.clock.Now() + Millis{30'000});
  }
};

TEST_F(CancelClientTest, ALateAnswerToAnEarlierRequestCounts) {
  const MonoTime start = played_.clock.Now();
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    played_.late.emplace_back(start + Millis{3500}, played_.sent == 1 ? Effect(m, CancelEffect::kCancelled, "")
                                                                      : Effect(m, CancelEffect::kEnded, "cancelled"));
    return std::nullopt;
  };
  const auto items = Cancel();
  ASSERT_TRUE(items) << items.error().message;
  EXPECT_EQ(items->at(0).effect, CancelEffect::kCancelled);
  EXPECT_EQ(played_.sent, 2U);
}

TEST_F(CancelClientTest, WhatIsCancelledAfterASilenceIsCancelledByIt) {
  std::string state = "cancelled";
  played_.answer = [&](const wire::Message& m) -> std::optional<wire::Message> {
    if (played_.sent == 1) return std::nullopt;
    return Effect(m, CancelEffect::kEnded, state);
  };
  auto items = Cancel();
  ASSERT_TRUE(items) << items.error().message;
  EXPECT_EQ(items->at(0).effect, CancelEffect::kCancelled);
  played_.sent = 0;
  state = "succeeded";
  items = Cancel();
  ASSERT_TRUE(items) << items.error().message;
  EXPECT_EQ(items->at(0).effect, CancelEffect::kEnded) << "too late";
  state = "cancelled";
  items = Cancel();
  ASSERT_TRUE(items) << items.error().message;
  EXPECT_EQ(items->at(0).effect, CancelEffect::kEnded) << "by somebody else";
}

}  // namespace
}  // namespace millrace::cli
