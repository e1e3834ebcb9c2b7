#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "common/base/limits.h"
#include "common/wire/check_job.h"
#include "common/wire/codec.h"
#include "common/wire/text.h"
#include "tests/support/random_messages.h"

namespace millrace::wire {
namespace {

using testing::RandomMessages;

std::string Body(Kind kind, std::string_view body) {
  std::string frame{static_cast<char>(kProtocolVersion), static_cast<char>(kind)};
  return frame.append(body);
}

std::string ErrorOf(std::string_view frame) {
  const auto decoded = Decode(frame);
  if (decoded) return "decoded";
  EXPECT_EQ(decoded.error().code, ErrorCode::kInvalidArgument);
  return decoded.error().message;
}

TEST(WireCodecTest, EveryKindSurvivesARoundTrip) {
  SeededRandom random(20261121);
  RandomMessages make(random);
  for (int round = 0; round < 300; ++round) {
    const auto all = make.All();
    ASSERT_EQ(all.size(), std::variant_size_v<Message>);
    for (std::size_t i = 0; i < all.size(); ++i) {
      ASSERT_EQ(all[i].index(), i) << "RandomMessages::All misses a kind";
      const std::string frame = Encode(all[i]);
      const auto decoded = Decode(frame);
      ASSERT_TRUE(decoded) << Name(KindOf(frame)) << ": " << decoded.error().message;
      EXPECT_TRUE(*decoded == all[i]) << Name(KindOf(frame));
      EXPECT_EQ(Encode(*decoded), frame);
    }
  }
}

TEST(WireCodecTest, SpecsSurviveARoundTripAsOpaqueBytes) {
  SeededRandom random(7);
  RandomMessages make(random);
  for (int round = 0; round < 300; ++round) {
    const JobSpec job = make.MakeJobSpec();
    const RunSpec run = make.MakeRunSpec();
    const auto job_again = DecodeJobSpec(EncodeJobSpec(job));
    const auto run_again = DecodeRunSpec(EncodeRunSpec(run));
    ASSERT_TRUE(job_again) << job_again.error().message;
    ASSERT_TRUE(run_again) << run_again.error().message;
    EXPECT_EQ(*job_again, job);
    EXPECT_EQ(*run_again, run);
    EXPECT_LE(EncodeJobSpec(job).size(), SizeBound(job));
  }
  EXPECT_FALSE(DecodeJobSpec(""));
  EXPECT_FALSE(DecodeJobSpec("\x02"));
  EXPECT_FALSE(DecodeRunSpec(EncodeJobSpec(JobSpec{})));
}

TEST(WireCodecTest, TruncationAtEveryByteIsAnErrorAndSoAreTrailingBytes) {
  SeededRandom random(3);
  RandomMessages make(random);
  for (int round = 0; round < 5; ++round) {
    for (const Message& message : make.All()) {
      const std::string frame = Encode(message);
      for (std::size_t size = 0; size < frame.size(); ++size) {
        const auto decoded = Decode(std::string_view(frame).substr(0, size));
        ASSERT_FALSE(decoded) << Name(KindOf(frame)) << " cut to " << size << " of " << frame.size();
        EXPECT_EQ(decoded.error().code, ErrorCode::kInvalidArgument);
      }
      EXPECT_NE(ErrorOf(frame + '\xC0').find("1 bytes follow the body"), std::string::npos);
    }
  }
}

TEST(WireCodecTest, AFlippedByteNeverCrashesAndWhatDecodesEncodesToEqualMeaning) {
  SeededRandom random(5);
  RandomMessages make(random);
  int survived = 0;
  for (int round = 0; round < 40; ++round) {
    for (const Message& message : make.All()) {
      std::string frame = Encode(message);
      for (int flips = 0; flips < 8; ++flips) {
        frame[random.Below(frame.size())] = static_cast<char>(random.Next());
        const auto decoded = Decode(frame);
        if (!decoded) continue;
        ++survived;
        const auto again = Decode(Encode(*decoded));
        ASSERT_TRUE(again) << again.error().message;
        EXPECT_TRUE(*again == *decoded);
      }
    }
  }
  EXPECT_GT(survived, 100);  // otherwise the property was hardly looked at
}

TEST(WireCodecTest, HeadersAreChecked) {
  EXPECT_EQ(ErrorOf(""), "frame of 0 bytes has no header");
  EXPECT_EQ(ErrorOf("\x01"), "frame of 1 bytes has no header");
  EXPECT_EQ(ErrorOf(std::string("\x02\x01\x91\xC0", 4)), "protocol version 2, this is 1");
  EXPECT_EQ(ErrorOf(Body(static_cast<Kind>(99), "\x90")), "kind 99 is not one of this protocol");
  EXPECT_EQ(ErrorOf(Body(Kind::kUnknown, "\x90")), "kind 0 is not one of this protocol");
  EXPECT_EQ(ErrorOf(std::string(kFrameBytesMax + 1, '\x01')), "frame of 8388609 bytes, limit 8388608");
  EXPECT_EQ(KindOf("\x01\x11"), Kind::kGrant);
  EXPECT_EQ(KindOf("\x02\x11"), Kind::kUnknown);
  EXPECT_EQ(KindOf("\x01\x63"), Kind::kUnknown);
}

TEST(WireCodecTest, BombsFailAtOnce) {
  for (const std::string_view bomb : {
           std::string_view("\xDD\xFF\xFF\xFF\xFF", 5),  // array of 4 G
           std::string_view("\xDF\xFF\xFF\xFF\xFF", 5),  // map of 4 G
           std::string_view("\xDB\xFF\xFF\xFF\xFF", 5),  // string of 4 GiB
           std::string_view("\xC6\xFF\xFF\xFF\xFF", 5),  // binary of 4 GiB
           std::string_view("\xC9\xFF\xFF\xFF\xFF", 5),  // extension of 4 GiB
           std::string_view("\xDC\x27\x11", 3),          // array of 10,001
       }) {
    const std::string error = ErrorOf(Body(Kind::kGrant, bomb));
    EXPECT_NE(error.find("grant: not a msgpack body within limits"), std::string::npos) << error;
  }
  // Only arrays that the layout has are entered.
  const std::string deep(kFrameBytesMax - kHeaderBytes, '\x91');
  EXPECT_EQ(ErrorOf(Body(Kind::kGrant, deep)), "grant: jobs[0].record has 1 fields, expected 7");
  // As many containers as a frame holds: refused by count or depth, in memory of the frame's order.
  std::string wide(kFrameBytesMax - kHeaderBytes, '\x90');
  wide[0] = '\xDC', wide[1] = '\x27', wide[2] = '\x10';
  EXPECT_NE(ErrorOf(Body(Kind::kGrant, wide)), "decoded");
}

TEST(WireCodecTest, FieldErrorsNameTheField) {
  EXPECT_EQ(ErrorOf(Body(Kind::kBrokerBeat, "\xC3")), "broker_beat: record is not an array");
  EXPECT_EQ(ErrorOf(Body(Kind::kBrokerBeat, "\x92\xC3\xC3")), "broker_beat: record has 2 fields, expected 1");
  EXPECT_EQ(ErrorOf(Body(Kind::kBrokerBeat, "\x91\x01")), "broker_beat: known is not a boolean");
  EXPECT_EQ(ErrorOf(Body(Kind::kStatus, "\x91\xFF")), "status: request is not in [0, 18446744073709551615]");
  EXPECT_EQ(ErrorOf(Body(Kind::kStatus,
                         "\x91\xA1"
                         "1")),
            "status: request is not an integer");
  EXPECT_EQ(ErrorOf(Body(Kind::kGoodbye, std::string("\x91\xC4\x01\x00", 4))), "goodbye: worker is not 16 bytes");
  EXPECT_EQ(ErrorOf(Body(Kind::kGoodbye, "\x91\xA1x")), "goodbye: worker is not binary");
  EXPECT_EQ(ErrorOf(Body(Kind::kProblem, "\x93\x01\xA1\xFF\xA0")), "problem: code is not UTF-8 without NUL");
  EXPECT_EQ(ErrorOf(Body(Kind::kGrant, "\x91\x91\x91\x01")), "grant: jobs[0].record has 1 fields, expected 7");
  EXPECT_EQ(ErrorOf(Body(Kind::kWelcome, std::string("\x93\xA0\x00\x01", 4))), "welcome: heartbeat_ms is not in [1, 3600000]");
}

TEST(WireCodecTest, LimitsAreEnforcedPerField) {
  const auto refused = [](const Message& message) { return ErrorOf(Encode(message)); };
  Grant grant{{Grant::Job{{}, Token{1}, "stage", std::string(kPayloadBytesMax, 'x'), 0, 1}}};
  EXPECT_TRUE(Decode(Encode(grant)));
  grant.jobs[0].payload += 'x';
  EXPECT_NE(refused(grant), "decoded");
  grant.jobs.assign(kBatchJobsMax, {});
  EXPECT_TRUE(Decode(Encode(grant)));
  grant.jobs.emplace_back();
  EXPECT_EQ(refused(grant), "grant: jobs has 1001 items, limit 1000");

  JobSpec spec;
  spec.kind = std::string(kNameBytesMax + 1, 'k');
  EXPECT_EQ(refused(SubmitJobs{1, {spec}}), "submit_jobs: jobs[0].kind has 129 bytes, limit 128");
  spec = {};
  spec.priority = kPriorityLevels;
  EXPECT_EQ(refused(SubmitJobs{1, {spec}}), "submit_jobs: jobs[0].priority is not in [0, 3]");
  spec = {};
  spec.retry.max_attempts = 0;
  EXPECT_EQ(refused(SubmitJobs{1, {spec}}), "submit_jobs: jobs[0].max_attempts is not in [1, 100]");
  spec = {};
  spec.timeout = Millis{-1};
  EXPECT_NE(refused(SubmitJobs{1, {spec}}), "decoded");
  spec = {};
  spec.org = OrgId{0};
  EXPECT_NE(refused(SubmitJobs{1, {spec}}), "decoded");

  AttemptReport report;
  report.result = std::string(kResultBytesMax + 1, 'r');
  EXPECT_EQ(refused(Ended{{}, 0, {report}}), "ended: reports[0].result has 65537 bytes, limit 65536");
  report = {};
  report.end = static_cast<AttemptEnd>(0);
  EXPECT_EQ(refused(Ended{{}, 0, {report}}), "ended: reports[0].end has no value 0");
}

TEST(WireCodecTest, TextForPeopleIsCutAndCleanedInsteadOfRefused) {
  AttemptReport report;
  report.error = std::string(kErrorMessageBytesMax, 'e') + "\xE2\x82\xAC";
  report.log_tail = std::string("a\0b\xFF", 4);
  const auto decoded = Decode(Encode(Ended{{}, 0, {report}}));
  ASSERT_TRUE(decoded) << decoded.error().message;
  const auto& back = std::get<Ended>(*decoded).reports.at(0);
  EXPECT_EQ(back.error, std::string(kErrorMessageBytesMax, 'e'));
  EXPECT_EQ(back.log_tail, "a?b?");
}

TEST(WireTextTest, KnowsWellFormedUtf8) {
  for (const std::string_view good :
       {"", "plain", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x9A\x82", "\xED\x9F\xBF", "\xF4\x8F\xBF\xBF"})
    EXPECT_TRUE(IsText(good)) << good;
  for (const std::string_view bad :
       {std::string_view("\0", 1), std::string_view("\x80"), std::string_view("\xC0\xAF"), std::string_view("\xE0\x80\xAF"),
        std::string_view("\xED\xA0\x80"), std::string_view("\xF4\x90\x80\x80"), std::string_view("\xF8\x88\x80\x80\x80"),
        std::string_view("\xE2\x82"), std::string_view("\xC3")})
    EXPECT_FALSE(IsText(bad));
}

TEST(WireTextTest, CleanTextKeepsHeadOrTailAndCutsBetweenCharacters) {
  EXPECT_EQ(CleanText("h\xC3\xA9llo", 2), "h");
  EXPECT_EQ(CleanText("h\xC3\xA9llo", 3), "h\xC3\xA9");
  EXPECT_EQ(CleanText("h\xC3\xA9llo", 4, Keep::kTail), "llo");
  EXPECT_EQ(CleanText("h\xC3\xA9llo", 5, Keep::kTail), "\xC3\xA9llo");
  EXPECT_EQ(CleanText("\xFF\xFE", 10), "??");
  SeededRandom random(11);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(random.Below(40), '\0');
    for (char& c : bytes) c = static_cast<char>(random.Next());
    const std::size_t limit = random.Below(40);
    for (const Keep keep : {Keep::kHead, Keep::kTail}) {
      const std::string text = CleanText(bytes, limit, keep);
      EXPECT_TRUE(IsText(text));
      EXPECT_LE(text.size(), limit);
    }
  }
}

TEST(CheckJob, RefusesOrgsAndQueuesThatNoCommandNames) {
  JobSpec good;
  good.id = JobId{Uuid{.bytes = {1}}};
  good.kind = "noop";
  ASSERT_TRUE(CheckJob(good));
  for (const std::int64_t org : {std::int64_t{0}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::min()}) {
    JobSpec job = good;
    job.org = OrgId{org};
    ASSERT_FALSE(CheckJob(job)) << org;
    EXPECT_EQ(CheckJob(job).error().message,
              "org: " + std::to_string(org) + " is no org; give an integer in [1, 9223372036854775807]");
  }
  good.queue.clear();
  ASSERT_FALSE(CheckJob(good));
  EXPECT_EQ(CheckJob(good).error().message, "queue: is empty; give a name of 1 to 128 bytes");
}

TEST(CheckJob, AUniqueWindowThatIsNoneSaysWhatIs) {
  JobSpec job;
  job.id = JobId{Uuid{.bytes = {1}}};
  job.kind = "noop";
  job.options.unique_key = "k";
  job.options.unique_until = UniqueUntil::kWindow;
  ASSERT_FALSE(CheckJob(job));
  EXPECT_EQ(CheckJob(job).error().message, "unique_window: 0 ms is not a window; give unique_window_ms in [1, 315360000000]");
}

TEST(CheckClientsOptions, RefusesWhatOnlyMillraceGivesAndWhatSaysNothing) {
  EXPECT_TRUE(CheckClientsOptions({}));
  const auto complaint = [](auto set) {
    JobOptions options;
    set(options);
    const auto checked = CheckClientsOptions(options);
    return checked ? std::string() : checked.error().message;
  };
  const std::string ours = "options: run_when, has_sink and retry_of are not for single jobs of a client";
  EXPECT_EQ(complaint([](JobOptions& o) { o.retry_of = JobId{Uuid{.bytes = {2}}}; }), ours);
  EXPECT_EQ(complaint([](JobOptions& o) { o.has_sink = true; }), ours);
  EXPECT_EQ(complaint([](JobOptions& o) { o.run_when = RunWhen::kAllEnded; }), ours);
  EXPECT_EQ(complaint([](JobOptions& o) { o.unique_until = UniqueUntil::kWindow; }),
            "options: unique_until: says nothing without a unique_key; give one");
  EXPECT_EQ(complaint([](JobOptions& o) { o.unique_window = Millis{5}; }),
            "options: unique_window_ms: says nothing without a unique_key; give one");
  EXPECT_EQ(complaint([](JobOptions& o) { o.unique_key = "k", o.unique_until = UniqueUntil::kStarted; }), "");
}

// What is added to a clock's time must not overflow: a unique window that did would end at once.
TEST(CheckJob, RefusesTimesThatNoClockReaches) {
  JobSpec good;
  good.id = JobId{Uuid{.bytes = {1}}};
  good.kind = "noop";
  good.retry.backoff_base = good.retry.backoff_cap = good.timeout = good.options.unique_window = kJobTimeMax;
  ASSERT_TRUE(CheckJob(good));
  const auto expect_refused = [&](const std::string& field, auto set) {
    for (const Millis time : {Millis{-1}, kJobTimeMax + Millis{1}, Millis::max()}) {
      JobSpec job = good;
      set(job, time);
      const auto checked = CheckJob(job);
      ASSERT_FALSE(checked) << field << " " << time.count();
      EXPECT_EQ(checked.error().code, ErrorCode::kInvalidArgument);
      EXPECT_TRUE(checked.error().message.starts_with(field + ": " + std::to_string(time.count()) + " ms"))
          << checked.error().message;
    }
  };
  expect_refused("backoff_base", [](JobSpec& job, Millis time) { job.retry.backoff_base = time; });
  expect_refused("backoff_cap", [](JobSpec& job, Millis time) { job.retry.backoff_cap = time; });
  expect_refused("timeout", [](JobSpec& job, Millis time) { job.timeout = time; });
  expect_refused("unique_window", [](JobSpec& job, Millis time) { job.options.unique_window = time; });
}

TEST(CheckJob, RefusesInstantsThatTheStoresDoNotHold) {
  JobSpec good;
  good.id = JobId{Uuid{.bytes = {1}}};
  good.kind = "noop";
  const auto expect_range = [&](const std::string& field, auto set) {
    for (const WallTime time : {kInstantMin, WallTime{}, kInstantMax}) {
      JobSpec job = good;
      set(job, time);
      EXPECT_TRUE(CheckJob(job)) << field << " " << ToRfc3339(time);
    }
    for (const WallTime time : {kInstantMin - Micros{1}, kInstantMax + Micros{1}, WallTime::min(), WallTime::max(),
                                *ParseRfc3339("0001-01-01T00:00:00Z"), *ParseRfc3339("9999-12-31T00:00:00Z")}) {
      JobSpec job = good;
      set(job, time);
      const auto checked = CheckJob(job);
      ASSERT_FALSE(checked) << field << " " << ToUnixMicros(time);
      EXPECT_EQ(checked.error().code, ErrorCode::kInvalidArgument);
      EXPECT_EQ(checked.error().message, field + ": " + std::to_string(ToUnixMicros(time)) +
                                             " microseconds since 1970 is out of range: give a time from "
                                             "1700-01-01T00:00:00Z to 2249-12-31T23:59:59.999999Z");
    }
  };
  expect_range("submitted_at", [](JobSpec& job, WallTime time) { job.submitted_at = time; });
  expect_range("run_at", [](JobSpec& job, WallTime time) { job.run_at = time; });
  expect_range("expires_at", [](JobSpec& job, WallTime time) { job.options.expires_at = time; });
  expect_range("deadline", [](JobSpec& job, WallTime time) { job.options.deadline = time; });
}

}  // namespace
}  // namespace millrace::wire
