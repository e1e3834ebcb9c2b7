#include "worker/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/base/random.h"

namespace millrace::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Held = wire::Hello::Held;

JobId Job(std::uint8_t n) {
  JobId id;
  id.uuid.bytes[15] = n;
  return id;
}

class SessionTest : public ::testing::Test {
 protected:
  void Make(std::uint32_t concurrency, std::size_t brokers = 1, bool held = false) {
    Session::Options options;
    options.held = held;
    options.worker.uuid.bytes[0] = 1;
    options.name = "w";
    options.concurrency = concurrency;
    options.brokers = brokers;
    session_.emplace(options);
  }
  // Runs the events' commands into the lists below.
  void Step() {
    sent_.clear(), started_.clear(), killed_.clear();
    for (auto& command : session_->TakeCommands(now_)) {
      if (auto* send = std::get_if<Session::Send>(&command)) sent_.push_back(*send);
      if (auto* start = std::get_if<Session::Start>(&command)) started_.push_back(start->job);
      if (auto* kill = std::get_if<Session::Kill>(&command)) killed_.push_back(*kill);
    }
  }
  void Tick(Millis d = Millis{0}) {
    now_ += d;
    session_->OnTick(now_);
    Step();
  }
  void Hear(const wire::Message& message, std::size_t broker = 0) {
    session_->OnMessage(now_, broker, message);
    Step();
  }
  void Connect(std::uint32_t concurrency, std::size_t brokers = 1) {
    Make(concurrency, brokers);
    Tick();
    for (std::size_t i = 0; i < brokers; ++i) Hear(wire::Welcome{"b", 1000, 3000}, i);
  }
  void GrantJob(std::uint8_t n, std::uint64_t token, std::size_t broker = 0) {
    Hear(wire::Grant{{{Job(n), Token{token}, "stage", "p", 0, 1}}}, broker);
  }
  void End(std::uint8_t n, std::uint64_t token, AttemptEnd end = AttemptEnd::kSucceeded) {
    AttemptReport report;
    report.job = Job(n);
    report.token = Token{token};
    report.end = end;
    session_->OnEnded(now_, report);
    Step();
  }
  void Answer(std::uint8_t n, std::uint64_t token, bool accepted = true, std::string reason = "", std::size_t broker = 0) {
    Hear(wire::EndedReply{{{Job(n), Token{token}, accepted, std::move(reason)}}}, broker);
  }
  template <class T>
  std::vector<T> Sent(std::size_t broker = 0) const {
    std::vector<T> found;
    for (const auto& s : sent_) {
      if (const auto* m = std::get_if<T>(&s.message); m && s.broker == broker) found.push_back(*m);
    }
    return found;
  }
  std::vector<std::uint64_t> StartedTokens() const {
    std::vector<std::uint64_t> tokens;
    for (const auto& job : started_) tokens.push_back(job.token.value());
    return tokens;
  }

  MonoTime now_{Micros{1'000'000'000}};
  std::optional<Session> session_;
  std::vector<Session::Send> sent_;
  std::vector<wire::Grant::Job> started_;
  std::vector<Session::Kill> killed_;
};

TEST_F(SessionTest, SaysHelloEachBeatUntilWelcomed) {
  Make(4);
  Tick();
  ASSERT_EQ(Sent<wire::Hello>().size(), 1u);
  EXPECT_EQ(Sent<wire::Hello>()[0].credit_limit, 4u);
  Tick(999ms);
  EXPECT_THAT(Sent<wire::Hello>(), IsEmpty());
  Tick(1ms);
  EXPECT_EQ(Sent<wire::Hello>().size(), 1u);
  Hear(wire::Welcome{"b", 1000, 3000});
  EXPECT_EQ(session_->live_brokers(), 1u);
  Tick(5ms);
  EXPECT_THAT(Sent<wire::Hello>(), IsEmpty());
}

TEST_F(SessionTest, AHelloThatCouldNotBeSentIsTriedAgainSoon) {
  Make(1);
  Tick();
  session_->OnNotSent(now_, 0);
  EXPECT_EQ(session_->NextTick(), now_ + 20ms);
  Tick(20ms);
  EXPECT_EQ(Sent<wire::Hello>().size(), 1u);
  EXPECT_EQ(session_->NextTick(), now_ + 1000ms);
}

TEST_F(SessionTest, BeatsAtTheWelcomedInterval) {
  Make(1);
  Tick();
  Hear(wire::Welcome{"b", 250, 750});
  int beats = 0;
  for (int i = 0; i < 100; ++i) {
    Hear(wire::BrokerBeat{true});
    Tick(10ms);
    beats += static_cast<int>(Sent<wire::Beat>().size());
  }
  EXPECT_EQ(beats, 4);
}

TEST_F(SessionTest, WhatIsSaidOfProgressWhenABeatIsDueIsInIt) {
  Connect(2);
  GrantJob(1, 5);
  GrantJob(2, 6);
  EXPECT_FALSE(session_->BeatDue(now_ + 999ms));
  now_ += 1000ms;
  ASSERT_TRUE(session_->BeatDue(now_));
  session_->OnProgress(Job(1), 7, 4096);
  Tick();
  ASSERT_EQ(Sent<wire::Beat>().size(), 1u);
  EXPECT_THAT(Sent<wire::Beat>()[0].progress, ElementsAre(wire::Beat::Progress{Job(1), 7, 4096}));
  EXPECT_FALSE(session_->BeatDue(now_));
  Tick(1000ms);
  EXPECT_THAT(Sent<wire::Beat>()[0].progress, ElementsAre(wire::Beat::Progress{Job(1), 7, 4096})) << "repeated";
  GrantJob(1, 9);
  session_->OnProgress(Job(1), 8, 5000);
  Tick(1000ms);
  EXPECT_THAT(Sent<wire::Beat>()[0].progress, IsEmpty()) << "of an attempt that is being replaced there is none";
}

TEST_F(SessionTest, CreditIsCumulativeAndNeverGoesDown) {
  Connect(2);
  GrantJob(1, 10);
  GrantJob(2, 11);
  EXPECT_EQ(session_->running(), 2u);
  End(1, 10);
  ASSERT_EQ(Sent<wire::Ended>().size(), 1u);
  EXPECT_EQ(Sent<wire::Ended>()[0].credit_limit, 3u);  // 2 taken + 1 free
  EXPECT_EQ(Sent<wire::Ended>()[0].reports[0].job, Job(1));
  EXPECT_THAT(Sent<wire::Beat>(), IsEmpty());  // the report carried it
  End(2, 11);
  EXPECT_EQ(Sent<wire::Ended>()[0].credit_limit, 4u);
  Hear(wire::BrokerBeat{false});  // a new session: both sides count from this hello on
  EXPECT_EQ(Sent<wire::Hello>().at(0).credit_limit, 2u);
  GrantJob(3, 12);
  Hear(wire::Welcome{"b", 1000, 3000});
  End(3, 12);
  EXPECT_EQ(Sent<wire::Ended>()[0].credit_limit, 3u);
}

TEST_F(SessionTest, AHeldSessionIsThereButHasNoCreditBeforeItsRelease) {
  Make(3, 1, true);
  Tick();
  ASSERT_EQ(sent_.size(), 1u);
  const auto& hello = std::get<wire::Hello>(sent_[0].message);
  EXPECT_EQ(hello.concurrency, 3u);
  EXPECT_EQ(hello.credit_limit, 0u);
  Hear(wire::Welcome{"b", 1000, 3000});
  Tick(Millis{1000});
  ASSERT_EQ(sent_.size(), 1u) << "it beats";
  EXPECT_EQ(std::get<wire::Beat>(sent_[0].message).credit_limit, 0u);
  session_->Release();
  Step();
  ASSERT_EQ(sent_.size(), 1u) << "at once";
  EXPECT_EQ(std::get<wire::Beat>(sent_[0].message).credit_limit, 3u);
  GrantJob(1, 1);
  EXPECT_EQ(started_.size(), 1u);
}

TEST_F(SessionTest, AnAttemptIsHeldUntilItsReportIsAnswered) {
  Connect(1);
  GrantJob(1, 10);
  End(1, 10);
  Tick(1000ms);
  ASSERT_EQ(Sent<wire::Beat>().size(), 1u);
  EXPECT_THAT(Sent<wire::Beat>()[0].held, ElementsAre(Held{Job(1), Token{10}}));
  EXPECT_EQ(Sent<wire::Ended>().size(), 1u) << "repeated";
  EXPECT_FALSE(session_->Settled());
  Answer(1, 9);  // another token's answer
  EXPECT_FALSE(session_->Settled());
  Answer(1, 10);
  EXPECT_TRUE(session_->Settled());
  Hear(wire::BrokerBeat{true});
  Tick(1000ms);
  EXPECT_THAT(Sent<wire::Beat>().at(0).held, IsEmpty());
  EXPECT_THAT(Sent<wire::Ended>(), IsEmpty());
}

TEST_F(SessionTest, RepeatedAndStaleGrantsAreIgnored) {
  Connect(4);
  GrantJob(1, 10);
  EXPECT_THAT(StartedTokens(), ElementsAre(10));
  GrantJob(1, 10);
  EXPECT_THAT(StartedTokens(), IsEmpty());
  GrantJob(1, 9);
  EXPECT_THAT(StartedTokens(), IsEmpty());
  EXPECT_THAT(killed_, IsEmpty());
}

TEST_F(SessionTest, AHigherTokenReplacesTheRunningAttempt) {
  Connect(1);
  GrantJob(1, 10);
  GrantJob(1, 12);
  ASSERT_EQ(killed_.size(), 1u);
  EXPECT_EQ(killed_[0].token, Token{10});
  EXPECT_EQ(killed_[0].reason, KillReason::kReplaced);
  EXPECT_THAT(StartedTokens(), IsEmpty()) << "not before the old one is gone";
  Tick(1000ms);
  EXPECT_THAT(Sent<wire::Beat>().at(0).held, ElementsAre(Held{Job(1), Token{10}}, Held{Job(1), Token{12}}));
  End(1, 10, AttemptEnd::kHandedBack);
  EXPECT_THAT(StartedTokens(), ElementsAre(12));
  EXPECT_THAT(Sent<wire::Ended>(), IsEmpty()) << "nobody waits for the old one";
}

TEST_F(SessionTest, RevokeKillsOnlyTheNamedToken) {
  Connect(1);
  GrantJob(1, 10);
  Hear(wire::Revoke{{{Job(1), Token{9}, "x"}}});
  EXPECT_THAT(killed_, IsEmpty());
  Hear(wire::Revoke{{{Job(1), Token{10}, "cancelled"}}});
  ASSERT_EQ(killed_.size(), 1u);
  EXPECT_EQ(killed_[0].reason, KillReason::kCancelled);
  Hear(wire::Revoke{{{Job(1), Token{10}, "cancelled"}}});
  EXPECT_THAT(killed_, IsEmpty()) << "once";
  EXPECT_EQ(session_->running(), 1u) << "the slot is in use until the process is gone";
}

TEST_F(SessionTest, WhatWaitsForASlotIsCancelledAtOnce) {
  Connect(1);
  GrantJob(1, 10);
  GrantJob(2, 11);
  Hear(wire::Revoke{{{Job(2), Token{11}, "cancelled"}}});
  EXPECT_THAT(killed_, IsEmpty());
  const auto ended = Sent<wire::Ended>();
  ASSERT_EQ(ended.size(), 1u);
  ASSERT_EQ(ended[0].reports.size(), 1u);
  EXPECT_EQ(ended[0].reports[0].end, AttemptEnd::kCancelled);
  EXPECT_EQ(ended[0].reports[0].error_class, "cancelled");
}

TEST_F(SessionTest, ASilentBrokerLosesItsLeasesAndHearsHello) {
  Connect(2);
  GrantJob(1, 10);
  for (int i = 0; i < 3; ++i) Tick(1000ms);
  EXPECT_THAT(killed_, IsEmpty());
  Tick(1ms);
  ASSERT_EQ(killed_.size(), 1u);
  EXPECT_EQ(killed_[0].reason, KillReason::kLeaseLost);
  ASSERT_EQ(Sent<wire::Hello>().size(), 1u);
  EXPECT_THAT(Sent<wire::Hello>()[0].held, IsEmpty()) << "it may be another process by now";
  EXPECT_EQ(Sent<wire::Hello>()[0].credit_limit, 1u);
  End(1, 10, AttemptEnd::kHandedBack);
  EXPECT_THAT(Sent<wire::Ended>(), IsEmpty()) << "there is nobody to tell";
  Hear(wire::Welcome{"b", 1000, 3000});
  EXPECT_THAT(Sent<wire::Ended>(), IsEmpty());
  ASSERT_EQ(Sent<wire::Orphans>().size(), 1u);
  EXPECT_THAT(Sent<wire::Orphans>()[0].items, ElementsAre(Held{Job(1), Token{10}}));
  Hear(wire::Adopt{{{Job(1), Token{10}}}});
  EXPECT_EQ(Sent<wire::Ended>().size(), 1u);
}

TEST_F(SessionTest, AnAttemptGoesOnWhenItsBrokerDiesAndAnotherLives) {
  Connect(2, 2);
  GrantJob(1, 10, 0);
  for (int i = 0; i < 4; ++i) {
    Hear(wire::BrokerBeat{true}, 1);
    Tick(1000ms);
  }
  EXPECT_THAT(killed_, IsEmpty());
  EXPECT_THAT(Sent<wire::Orphans>(1).at(0).items, ElementsAre(Held{Job(1), Token{10}}));
  EXPECT_THAT(Sent<wire::Beat>(1).at(0).held, IsEmpty());
  Hear(wire::Adopt{{{Job(1), Token{9}}}}, 1);  // not this one
  Hear(wire::BrokerBeat{true}, 1);
  Tick(1000ms);
  EXPECT_EQ(Sent<wire::Orphans>(1).size(), 1u) << "each beat";
  Hear(wire::Adopt{{{Job(1), Token{10}}}}, 1);
  EXPECT_THAT(Sent<wire::Beat>(1).at(0).held, ElementsAre(Held{Job(1), Token{10}}));
  EXPECT_THAT(Sent<wire::Orphans>(1), IsEmpty());
  End(1, 10);
  EXPECT_EQ(Sent<wire::Ended>(1).size(), 1u);
  EXPECT_THAT(Sent<wire::Ended>(0), IsEmpty());
  Answer(1, 10, true, "", 1);
  EXPECT_TRUE(session_->Settled());
}

TEST_F(SessionTest, AnAttemptThatIsHandedOverGoesOnAndItsReportWaits) {
  Connect(2, 2);
  GrantJob(1, 10, 0);
  GrantJob(2, 11, 0);
  Hear(wire::Revoke{{{Job(1), Token{10}, std::string(wire::kHandedOver)}, {Job(2), Token{11}, "no_lease"}}}, 0);
  ASSERT_EQ(killed_.size(), 1u);
  EXPECT_EQ(killed_[0].job, Job(2));
  EXPECT_THAT(Sent<wire::Orphans>(0).at(0).items, ElementsAre(Held{Job(1), Token{10}})) << "it may take its shard again";
  EXPECT_THAT(Sent<wire::Orphans>(1).at(0).items, ElementsAre(Held{Job(1), Token{10}}));
  End(1, 10);
  EXPECT_THAT(Sent<wire::Ended>(0), IsEmpty());
  EXPECT_THAT(Sent<wire::Ended>(1), IsEmpty());
  Hear(wire::Adopt{{{Job(1), Token{10}}}}, 1);
  EXPECT_EQ(Sent<wire::Ended>(1).size(), 1u);
  Hear(wire::Revoke{{{Job(1), Token{10}, std::string(wire::kHandedOver)}}}, 0);  // late: it is not that broker's any more
  EXPECT_THAT(Sent<wire::Orphans>(0), IsEmpty());
}

TEST_F(SessionTest, AnOrphanNobodyWantsIsStoppedAndForgotten) {
  Connect(2, 2);
  GrantJob(1, 10, 0);
  GrantJob(2, 11, 0);
  End(2, 11);
  Hear(wire::Revoke{{{Job(1), Token{10}, std::string(wire::kHandedOver)}, {Job(2), Token{11}, std::string(wire::kHandedOver)}}},
       0);
  for (int i = 0; i < 11; ++i) {
    Hear(wire::BrokerBeat{true}, 0);
    Hear(wire::BrokerBeat{true}, 1);
    Tick(1000ms);
    EXPECT_THAT(killed_, IsEmpty()) << i;
  }
  Hear(wire::BrokerBeat{true}, 0);
  Hear(wire::BrokerBeat{true}, 1);
  Tick(1000ms);
  ASSERT_EQ(killed_.size(), 1u);
  EXPECT_EQ(killed_[0].reason, KillReason::kLeaseLost);
  End(1, 10, AttemptEnd::kHandedBack);
  Tick(1000ms);
  EXPECT_TRUE(session_->Settled());
}

TEST_F(SessionTest, AWorkerThatHearsNobodyStopsItsOrphansToo) {
  Connect(2, 2);
  GrantJob(1, 10, 0);
  Hear(wire::Revoke{{{Job(1), Token{10}, std::string(wire::kHandedOver)}}}, 0);
  Tick(3001ms);
  ASSERT_EQ(killed_.size(), 1u);
  EXPECT_EQ(killed_[0].reason, KillReason::kLeaseLost);
}

TEST_F(SessionTest, AFrozenWorkerGivesUpItsLeasesEvenIfBrokerBeatsAreQueued) {
  Connect(1);
  GrantJob(1, 10);
  now_ += 4s;
  Hear(wire::BrokerBeat{true});  // read after the thaw: it renews nothing
  Tick();
  ASSERT_EQ(killed_.size(), 1u);
  EXPECT_EQ(killed_[0].reason, KillReason::kLeaseLost);
}

TEST_F(SessionTest, AnUnknownSessionSaysHelloAgainAndKeepsItsJobs) {
  Connect(2);
  GrantJob(1, 10);
  Hear(wire::BrokerBeat{false});
  ASSERT_EQ(Sent<wire::Hello>().size(), 1u);
  EXPECT_THAT(killed_, IsEmpty());
  Hear(wire::BrokerBeat{false});
  EXPECT_THAT(Sent<wire::Hello>(), IsEmpty()) << "one at a time";
  Hear(wire::Welcome{"b", 1000, 3000});
  EXPECT_THAT(Sent<wire::Orphans>().at(0).items, ElementsAre(Held{Job(1), Token{10}}));
  EXPECT_THAT(killed_, IsEmpty());
}

TEST_F(SessionTest, AGrantUnderWayDuringAHelloCountsAndRuns) {
  Connect(2);
  Hear(wire::BrokerBeat{false});
  EXPECT_EQ(Sent<wire::Hello>().at(0).credit_limit, 2u);
  GrantJob(1, 10);
  EXPECT_THAT(StartedTokens(), ElementsAre(10));
  Hear(wire::Welcome{"b", 1000, 3000});
  Tick(1000ms);
  EXPECT_EQ(Sent<wire::Beat>().at(0).credit_limit, 2u);  // 1 taken + 1 free
}

TEST_F(SessionTest, EachBrokerHearsOnlyOfWhatItGranted) {
  Connect(4, 2);
  GrantJob(1, 10, 0);
  GrantJob(2, 11, 1);
  Tick(1000ms);
  EXPECT_THAT(Sent<wire::Beat>(0).at(0).held, ElementsAre(Held{Job(1), Token{10}}));
  EXPECT_THAT(Sent<wire::Beat>(1).at(0).held, ElementsAre(Held{Job(2), Token{11}}));
}

TEST_F(SessionTest, OverflowOfSeveralBrokersWaitsAndIsHandedBack) {
  Connect(1, 2);
  GrantJob(1, 10, 0);
  GrantJob(2, 11, 1);
  EXPECT_THAT(StartedTokens(), IsEmpty());
  EXPECT_FALSE(session_->Idle());
  Tick(499ms);
  EXPECT_THAT(Sent<wire::Ended>(1), IsEmpty());
  Tick(1ms);
  ASSERT_EQ(Sent<wire::Ended>(1).size(), 1u);
  EXPECT_EQ(Sent<wire::Ended>(1)[0].reports[0].end, AttemptEnd::kHandedBack);
  EXPECT_THAT(Sent<wire::Ended>(0), IsEmpty());
}

TEST_F(SessionTest, OverflowStartsWhenASlotIsFree) {
  Connect(1, 2);
  GrantJob(1, 10, 0);
  GrantJob(2, 11, 1);
  End(1, 10);
  EXPECT_THAT(StartedTokens(), ElementsAre(11));
}

TEST_F(SessionTest, TheOtherBrokersHearOfAFreeSlotAtOnce) {
  Connect(1, 2);
  GrantJob(1, 10, 0);
  End(1, 10);
  EXPECT_EQ(Sent<wire::Ended>(0).at(0).credit_limit, 2u);
  EXPECT_THAT(Sent<wire::Beat>(1), IsEmpty()) << "its credit of 1 was never used";
  GrantJob(2, 11, 1);
  GrantJob(3, 12, 0);  // waits
  End(2, 11);
  EXPECT_THAT(StartedTokens(), ElementsAre(12));
  End(3, 12);
  EXPECT_EQ(Sent<wire::Beat>(1).at(0).credit_limit, 2u);
}

TEST_F(SessionTest, AReportFindsTheNewOwner) {
  Connect(1, 2);
  GrantJob(1, 10, 0);
  End(1, 10);
  EXPECT_EQ(Sent<wire::Ended>(0).size(), 1u);
  EXPECT_THAT(Sent<wire::Ended>(1), IsEmpty());
  Answer(1, 10, false, "not_owner", 0);
  EXPECT_FALSE(session_->Settled());
  Hear(wire::BrokerBeat{true}, 1);
  Tick(1000ms);
  EXPECT_EQ(Sent<wire::Orphans>(1).size(), 1u);
  EXPECT_THAT(Sent<wire::Ended>(1), IsEmpty()) << "a report that nobody adopted would be refused";
  Hear(wire::Adopt{{{Job(1), Token{10}}}}, 1);
  Tick(1000ms);
  EXPECT_EQ(Sent<wire::Ended>(1).size(), 1u);
  Hear(wire::Revoke{{{Job(1), Token{10}, "no_lease"}}}, 0);  // the former owner knows nothing of that
  EXPECT_FALSE(session_->Settled());
  Answer(1, 10, true, "", 1);
  EXPECT_TRUE(session_->Settled());
}

TEST_F(SessionTest, AReportNobodyOwnsIsDroppedAfterAMinute) {
  Connect(1);
  GrantJob(1, 10);
  End(1, 10);
  Answer(1, 10, false, "not_owner");
  EXPECT_FALSE(session_->Settled());
  now_ += 61s;
  Answer(1, 10, false, "not_owner");
  EXPECT_TRUE(session_->Settled());
}

TEST_F(SessionTest, DrainHandsBackWhatHasNotStartedAndTakesNothing) {
  Connect(1, 2);
  GrantJob(1, 10, 0);
  GrantJob(2, 11, 1);
  session_->Drain(now_);
  Step();
  EXPECT_EQ(Sent<wire::Ended>(1).at(0).reports[0].end, AttemptEnd::kHandedBack);
  EXPECT_TRUE(Sent<wire::Beat>(0).at(0).draining);
  EXPECT_THAT(killed_, IsEmpty());
  GrantJob(3, 12);
  EXPECT_THAT(StartedTokens(), IsEmpty());
  EXPECT_EQ(Sent<wire::Ended>(0).at(0).reports[0].end, AttemptEnd::kHandedBack);
  End(1, 10);
  EXPECT_EQ(Sent<wire::Ended>(0).at(0).credit_limit, 1u) << "no new credit";
  EXPECT_TRUE(session_->Idle());
}

TEST_F(SessionTest, HandBackAllKillsAndGoodbyeGoesToEveryBroker) {
  Connect(1, 2);
  GrantJob(1, 10, 0);
  session_->HandBackAll(now_);
  Step();
  ASSERT_EQ(killed_.size(), 1u);
  EXPECT_EQ(killed_[0].reason, KillReason::kDrained);
  session_->SayGoodbye();
  Step();
  EXPECT_EQ(Sent<wire::Goodbye>(0).size() + Sent<wire::Goodbye>(1).size(), 2u);
}

TEST_F(SessionTest, ReportsAreSplitBySize) {
  Connect(200);
  for (std::uint8_t n = 1; n <= 150; ++n) GrantJob(n, n);
  for (std::uint8_t n = 1; n <= 150; ++n) {
    AttemptReport report;
    report.job = Job(n);
    report.token = Token{n};
    report.result = std::string(kResultBytesMax, 'r');
    session_->OnEnded(now_, report);
  }
  Step();
  std::size_t reports = 0;
  for (const auto& ended : Sent<wire::Ended>()) {
    EXPECT_LT(wire::Encode(ended).size(), kFrameBytesMax);
    reports += ended.reports.size();
  }
  EXPECT_EQ(reports, 150u);
  EXPECT_GT(Sent<wire::Ended>().size(), 1u);
}

TEST_F(SessionTest, RandomEventsKeepTheInvariants) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SeededRandom random(seed);
    const auto concurrency = static_cast<std::uint32_t>(1 + random.Below(4));
    const std::size_t brokers = 1 + random.Below(3);
    Make(concurrency, brokers);
    std::map<JobId, Token> running;
    std::map<std::pair<JobId, Token>, std::size_t> granter;
    std::vector<std::uint64_t> limit(brokers, 0);
    std::set<std::pair<JobId, Token>> orphans;
    for (int step = 0; step < 300; ++step) {
      const std::size_t broker = random.Below(brokers);
      const auto n = static_cast<std::uint8_t>(random.Below(6));
      const std::uint64_t token = 1 + random.Below(8);
      switch (random.Below(8)) {
        case 0: session_->OnMessage(now_, broker, wire::Welcome{"b", 1000, 3000}); break;
        case 1:
        case 2:
          if (!granter.contains({Job(n), Token{token}})) granter[{Job(n), Token{token}}] = broker;
          if (granter.at({Job(n), Token{token}}) != broker) break;  // no two brokers use one token
          session_->OnMessage(now_, broker, wire::Grant{{{Job(n), Token{token}, "stage", "", 0, 1}}});
          break;
        case 3: session_->OnMessage(now_, broker, wire::Revoke{{{Job(n), Token{token}, "x"}}}); break;
        case 4:
          session_->OnMessage(now_, broker, wire::EndedReply{{{Job(n), Token{token}, random.Below(2) == 0, "not_owner"}}});
          break;
        case 5: session_->OnMessage(now_, broker, wire::BrokerBeat{random.Below(4) != 0}); break;
        case 6:
          if (!running.empty()) {
            AttemptReport report;
            report.job = running.begin()->first;
            report.token = running.begin()->second;
            running.erase(running.begin());
            session_->OnEnded(now_, report);
          }
          break;
        case 7:
          now_ += Millis{static_cast<std::int64_t>(random.Below(1500))};
          session_->OnTick(now_);
          break;
      }
      Step();
      for (const auto& job : started_) {
        ASSERT_TRUE(running.emplace(job.id, job.token).second) << "started twice, seed " << seed;
      }
      for (const auto& kill : killed_) ASSERT_EQ(running.at(kill.job), kill.token) << "seed " << seed;
      ASSERT_LE(running.size(), concurrency) << "seed " << seed;
      ASSERT_EQ(session_->running(), running.size()) << "seed " << seed;
      for (std::size_t i = 0; i < brokers; ++i) {
        for (const auto& hello : Sent<wire::Hello>(i)) limit[i] = hello.credit_limit;
        for (const auto& told : Sent<wire::Orphans>(i))
          for (const auto& [job, t] : told.items) orphans.emplace(job, t);
      }
      for (std::size_t i = 0; i < brokers; ++i) {
        for (const auto& beat : Sent<wire::Beat>(i)) {
          ASSERT_GE(beat.credit_limit, limit[i]) << "credit went down, seed " << seed;
          limit[i] = beat.credit_limit;
          for (const auto& [job, t] : running) {
            if (granter.at({job, t}) != i || orphans.contains({job, t})) continue;
            ASSERT_THAT(beat.held, ::testing::Contains(Held{job, t})) << "not held, seed " << seed;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace millrace::worker
