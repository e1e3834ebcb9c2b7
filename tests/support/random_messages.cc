#include "tests/support/random_messages.h"

#include <array>

namespace millrace::testing {

using namespace millrace::wire;

std::uint64_t RandomMessages::Number() { return random_.Next() >> random_.Below(64); }
std::int64_t RandomMessages::Signed() {
  const auto n = static_cast<std::int64_t>(Number() >> 1);
  return Flip() ? -n : n;
}

std::string RandomMessages::Text(std::size_t bytes_max) {
  static constexpr std::array<std::string_view, 8> kPieces{
      "a", "Z", "0", "_", "\n", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x9A\x82"};
  std::string text;
  const std::size_t target = random_.Below(bytes_max + 1);
  while (text.size() + 4 <= target) text += kPieces[random_.Below(kPieces.size())];
  return text;
}

std::string RandomMessages::Bytes(std::size_t bytes_max) {
  std::string bytes(random_.Below(bytes_max + 1), '\0');
  for (char& c : bytes) c = static_cast<char>(random_.Next());
  return bytes;
}

Uuid RandomMessages::MakeUuid() {
  Uuid uuid;
  for (auto& byte : uuid.bytes) byte = static_cast<std::uint8_t>(random_.Next());
  return uuid;
}

WallTime RandomMessages::Time() { return FromUnixMicros(Signed()); }

JobOptions RandomMessages::MakeOptions() {
  JobOptions options;
  options.backoff = Flip() ? Backoff::kFixed : Backoff::kExponential;
  if (Flip()) options.no_retry = {"source_changed", "check_failed"};
  if (Flip()) options.expires_at = Time();
  if (Flip()) options.deadline = Time();
  if (Flip()) options.limit_key = "customer \u00e9 7";
  if (Flip()) options.unique_key = "k";
  options.unique_until = static_cast<UniqueUntil>(1 + random_.Below(3));
  options.unique_window = Millis{static_cast<std::int64_t>(random_.Below(1u << 31))};
  options.run_when = Flip() ? RunWhen::kAllEnded : RunWhen::kAllSucceeded;
  options.durability = static_cast<Durability>(random_.Below(3));
  options.has_sink = Flip();
  if (Flip()) options.retry_of = JobId{MakeUuid()};
  return options;
}

JobSpec RandomMessages::MakeJobSpec() {
  JobSpec spec;
  spec.id = {MakeUuid()};
  spec.org = OrgId{static_cast<std::int64_t>(1 + random_.Below(1u << 30))};
  if (Flip()) spec.run = RunId{MakeUuid()};
  spec.stage = Text();
  spec.kind = Text();
  spec.queue = Text();
  spec.priority = static_cast<int>(random_.Below(kPriorityLevels));
  spec.payload = Bytes(300);
  spec.depends_on = List<JobId>([this] { return JobId{MakeUuid()}; });
  spec.effect = Text(200);
  spec.root = Text(60);
  spec.retry = {static_cast<int>(1 + random_.Below(kMaxAttemptsMax)), Millis{static_cast<std::int64_t>(random_.Below(100'000))},
                Millis{static_cast<std::int64_t>(random_.Below(1'000'000))}};
  spec.timeout = Millis{static_cast<std::int64_t>(random_.Below(1u << 31))};
  if (Flip()) spec.run_at = Time();
  spec.submitted_at = Time();
  if (Flip()) spec.options = MakeOptions();
  return spec;
}

RunSpec RandomMessages::MakeRunSpec() {
  RunSpec spec;
  spec.id = {MakeUuid()};
  spec.org = OrgId{static_cast<std::int64_t>(1 + random_.Below(1u << 30))};
  spec.pipeline = Text();
  spec.version = Signed();
  spec.schedule = Text();
  if (Flip()) spec.slot = Time();
  spec.generation = static_cast<std::uint32_t>(Number());
  spec.overlap = Text();
  spec.params = Text(200);
  spec.created_at = Time();
  return spec;
}

QueueSettings RandomMessages::MakeSettings() {
  QueueSettings s;
  s.org = OrgId{static_cast<std::int64_t>(1 + random_.Below(9))};
  s.queue = Text();
  s.revision = Signed();
  s.paused = Flip();
  if (Flip()) s.order = QueueOrder::kWeighted;
  for (std::uint32_t& weight : s.weights) weight = static_cast<std::uint32_t>(1 + random_.Below(kQueueWeightMax));
  if (Flip()) s.aging = Millis{static_cast<std::int64_t>(100 + random_.Below(100'000))};
  if (Flip()) s.concurrency = static_cast<std::uint32_t>(random_.Below(1000));
  if (Flip()) s.key_concurrency = static_cast<std::uint32_t>(random_.Below(1000));
  if (Flip())
    s.rate = {static_cast<std::uint32_t>(1 + random_.Below(1000)), Millis{1 + static_cast<int>(random_.Below(999))}, 0};
  if (Flip()) s.key_rate = {1, Millis{60'000}, static_cast<std::uint32_t>(random_.Below(50))};
  if (Flip()) s.max_waiting_jobs = random_.Below(100'000);
  if (Flip()) s.max_waiting_bytes = random_.Below(1u << 30);
  if (Flip()) s.durability = Durability::kRedis;
  if (Flip()) s.redis_until = Time();
  return s;
}

AttemptReport RandomMessages::MakeReport() {
  AttemptReport report;
  report.job = {MakeUuid()};
  report.token = Token{Number()};
  report.end = static_cast<AttemptEnd>(1 + random_.Below(6));
  report.retryable = Flip();
  report.error_class = Text();
  report.error = Text(100);
  report.result = Text(300);
  report.exit_code = static_cast<std::int32_t>(Signed());
  report.signal = static_cast<std::int32_t>(random_.Below(64));
  report.log_tail = Text(500);
  report.worker = Text();
  report.started_at = Time();
  report.finished_at = Time();
  return report;
}

std::vector<Message> RandomMessages::All() {
  const auto text = [this] { return Text(); };
  const auto u32 = [this] { return static_cast<std::uint32_t>(Number()); };
  const auto token = [this] { return Token{Number()}; };
  const auto job = [this] { return JobId{MakeUuid()}; };
  const auto held = [&] { return Hello::Held{job(), token()}; };
  const WorkerId worker{MakeUuid()};
  static constexpr std::array kJobStates{JobState::kBlocked, JobState::kRunning, JobState::kSucceeded, JobState::kSkipped};
  static constexpr std::array kRunStates{RunState::kQueued, RunState::kCancelling, RunState::kFailed, RunState::kSkipped};
  const auto stage = [&] {
    RunUpdate::Stage s{job(),    Text(),  kJobStates[random_.Below(4)], {u32(), u32(), u32()}, Text(), Signed(), Signed(),
                       Text(99), Text(99)};
    return s;
  };
  return {
      Hello{worker, Text(), List<std::string>(text), List<std::string>(text), List<std::string>(text), u32(), Number(),
            List<Hello::Held>(held)},
      Beat{worker, Number(), List<Hello::Held>(held),
           List<Beat::Progress>([&] { return Beat::Progress{job(), Signed(), Signed()}; }), Flip()},
      Ended{worker, Number(), List<AttemptReport>([this] { return MakeReport(); })},
      Goodbye{worker},
      Orphans{worker, List<Hello::Held>(held)},
      Welcome{Text(), static_cast<std::uint32_t>(1 + random_.Below(10'000)),
              static_cast<std::uint32_t>(1 + random_.Below(10'000))},
      Grant{List<Grant::Job>([&] { return Grant::Job{job(), token(), Text(), Bytes(300), u32(), u32(), Flip()}; })},
      EndedReply{List<EndedReply::Item>([&] { return EndedReply::Item{job(), token(), Flip(), Text()}; })},
      Revoke{List<Revoke::Item>([&] { return Revoke::Item{job(), token(), Text()}; })},
      BrokerBeat{Flip()},
      Adopt{List<Hello::Held>(held)},
      SubmitJobs{Number(), List<JobSpec>([this] { return MakeJobSpec(); })},
      SubmitRun{Number(), MakeRunSpec(), List<JobSpec>([this] { return MakeJobSpec(); }), Flip()},
      Watch{Number(), OrgId{7}, RunId{MakeUuid()}},
      Status{Number()},
      Cancel{Number(), OrgId{7}, List<Cancel::Item>([this] { return Cancel::Item{MakeUuid(), Flip()}; }), Text(), Text(100)},
      SetQueue{Number(), MakeSettings(), Text()},
      ListQueues{Number(), OrgId{7}, Text()},
      ListUnserved{Number(), OrgId{7}},
      ListKept{Number(), OrgId{7}, Text(), Text(), Bytes(300)},
      SubmitReply{Number(), List<SubmitReply::Item>([&] { return SubmitReply::Item{MakeUuid(), Flip(), MakeUuid()}; })},
      RunUpdate{RunId{MakeUuid()}, kRunStates[random_.Below(4)], Text(), List<RunUpdate::Stage>(stage)},
      StatusReply{Number(), Text(), List<StatusReply::Shard>([&] {
                    return StatusReply::Shard{static_cast<std::uint16_t>(random_.Below(65536)), u32(), Number(), Number(),
                                              Number()};
                  }),
                  List<StatusReply::Worker>([&] { return StatusReply::Worker{Text(), u32(), u32()}; })},
      CancelReply{Number(), List<CancelReply::Item>([this] {
                    return CancelReply::Item{MakeUuid(), static_cast<CancelEffect>(1 + random_.Below(4)), Text()};
                  })},
      SetQueueReply{Number(), Signed()},
      ListQueuesReply{Number(), List<ListQueuesReply::Item>([this] {
                        return ListQueuesReply::Item{MakeSettings(), Number(), Number(), Number(), Number()};
                      }),
                      Flip()},
      ListUnservedReply{Number(), List<ListUnservedReply::Item>([&] {
                          return ListUnservedReply::Item{Text(), Text(), Text(), Number(),
                                                         Flip() ? std::optional(FromUnixMicros(Signed())) : std::nullopt};
                        }),
                        Flip(), Number()},
      ListKeptReply{Number(), List<JobId>(job), Bytes(300)},
      Problem{Number(), Text(), Text(100)},
  };
}

}  // namespace millrace::testing
