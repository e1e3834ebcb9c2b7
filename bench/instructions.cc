// Hot paths, each a fixed number of times, for bench/instructions to count the instructions of.
//   instruction_paths            lists the names
//   instruction_paths NAME N     does it N times; what it needs is made before and costs the same for every N
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "broker/entry_codec.h"
#include "broker/line_index.h"
#include "client/bench/histogram.h"
#include "client/bench/payload.h"
#include "common/base/random.h"
#include "common/model/cron.h"
#include "common/wire/messages.h"

namespace millrace {
namespace {

constexpr int kBatch = 100;  // jobs of one message
constexpr WallTime kWhen = FromUnixMicros(1'700'000'000'000'000);

struct Fixture {
  FakeClock clock{kWhen};
  SeededRandom random{1};
  IdGenerator ids{clock, random};

  JobSpec Job(std::uint64_t number) {
    JobSpec job;
    job.id = ids.Next<JobId>();
    job.kind = "work";
    job.payload = bench::EncodePayload({.number = number}, 100);
    job.submitted_at = kWhen;
    return job;
  }
  wire::Message Submit() {
    wire::SubmitJobs m{.request = 1, .jobs = {}};
    for (int i = 0; i < kBatch; ++i) m.jobs.push_back(Job(static_cast<std::uint64_t>(i)));
    return m;
  }
  wire::Message Accepted() {
    wire::SubmitReply m{.request = 1, .accepted = {}};
    for (int i = 0; i < kBatch; ++i) m.accepted.push_back({.id = ids.Next(), .duplicate = false, .conflict_with = {}});
    return m;
  }
  wire::Message Grant() {
    wire::Grant m;
    for (int i = 0; i < kBatch; ++i) {
      JobSpec job = Job(static_cast<std::uint64_t>(i));
      m.jobs.push_back(
          {.id = job.id, .token = Token{static_cast<std::uint64_t>(i) + 1}, .kind = job.kind, .payload = job.payload});
    }
    return m;
  }
  wire::Message Ended() {
    wire::Ended m{.worker = ids.Next<WorkerId>(), .credit_limit = 100, .reports = {}};
    for (int i = 0; i < kBatch; ++i) {
      AttemptReport report;
      report.job = ids.Next<JobId>();
      report.token = Token{static_cast<std::uint64_t>(i) + 1};
      report.end = AttemptEnd::kSucceeded;
      report.worker = "worker-1";
      report.started_at = report.finished_at = kWhen;
      m.reports.push_back(std::move(report));
    }
    return m;
  }
};

std::size_t sink = 0;  // keeps results alive

using Path = std::function<std::function<void()>()>;  // prepares, and returns what is counted

Path Encoding(wire::Message (Fixture::*make)()) {
  return [make] { return [m = (Fixture{}.*make)()] { sink += wire::Encode(m).size(); }; };
}
Path Decoding(wire::Message (Fixture::*make)()) {
  return [make] { return [frame = wire::Encode((Fixture{}.*make)())] { sink += wire::Decode(frame).has_value() ? 1U : 0U; }; };
}

Path Entries(bool decode) {
  return [decode]() -> std::function<void()> {
    Fixture fixture;
    const JobSpec job = fixture.Job(7);
    const LineKey line{
        .queue = job.queue, .priority = job.priority, .org = job.org, .root = "", .kind = job.kind, .limit_key = ""};
    if (!decode) return [job, line] { sink += EncodeEntry(job, {}, line).size(); };
    return
        [bytes = EncodeEntry(job, {}, line), id = job.id, line] { sink += DecodeEntry(bytes, id, line).has_value() ? 1U : 0U; };
  };
}

std::function<void()> Cron() {
  auto schedule = CronSchedule::Make("15 6 * * mon-fri", "America/New_York", DstRule::kOnce);
  return [schedule = std::move(*schedule), at = kWhen]() mutable {
    at = *schedule.Next(at);
    sink += static_cast<std::size_t>(at.time_since_epoch().count());
  };
}

// A job through the index of lines, from ready to ended: 10,000 limit keys.
std::function<void()> Lines() {
  struct State {
    LineIndex index;
    MonoTime now{Micros{1'000'000}};
  };
  auto state = std::make_shared<State>();
  for (int i = 0; i < 10'000; ++i) {
    const LineKey key{.queue = "q",
                      .priority = kPriorityDefault,
                      .org = OrgId{1},
                      .root = "",
                      .kind = "work",
                      .limit_key = std::to_string(i)};
    state->index.Add(ShardId{0}, key.ToString(), 10, state->now);
  }
  return [state, view = state->index.ViewOf(WorkerReach{})] {
    state->now += Micros{10};
    state->index.Advance(state->now);
    LineIndex::Line* line = state->index.Next(*view);
    const LineKey key = line->key();
    const std::string name = line->name();
    state->index.Take(*line, 1, state->now);
    state->index.Add(ShardId{0}, name, 1, state->now);
    state->index.Ended(key, state->now);
  };
}

const std::map<std::string, Path>& Paths() {
  static const std::map<std::string, Path> paths{
      {"submit_encode_100", Encoding(&Fixture::Submit)},
      {"submit_decode_100", Decoding(&Fixture::Submit)},
      {"accepted_encode_100", Encoding(&Fixture::Accepted)},
      {"accepted_decode_100", Decoding(&Fixture::Accepted)},
      {"grant_encode_100", Encoding(&Fixture::Grant)},
      {"grant_decode_100", Decoding(&Fixture::Grant)},
      {"ended_encode_100", Encoding(&Fixture::Ended)},
      {"ended_decode_100", Decoding(&Fixture::Ended)},
      {"entry_encode", Entries(false)},
      {"entry_decode", Entries(true)},
      {"cron_next", Cron},
      {"line_turn_10000_keys", Lines},
      {"job_id", [] { return [fixture = std::make_shared<Fixture>()] { sink += fixture->ids.Next<JobId>().uuid.bytes[15]; }; }},
      {"histogram_add",
       [] {
         return [h = std::make_shared<bench::Histogram>(), v = std::int64_t{1}]() mutable { h->Add(v = v * 31 % 1'000'003); };
       }},
  };
  return paths;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  using namespace millrace;
  if (argc < 3) {
    for (const auto& [name, path] : Paths()) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto path = Paths().find(argv[1]);
  if (path == Paths().end()) return 2;
  const auto once = path->second();
  for (long n = std::atol(argv[2]); n > 0; --n) once();
  return sink == 0 && std::atol(argv[2]) < 0 ? 1 : 0;
}
