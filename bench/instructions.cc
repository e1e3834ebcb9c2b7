// Hot paths, each a fixed number of times, for bench/instructions to count the instructions of.
//   instruction_paths            lists the names
//   instruction_paths NAME N     does it N times; what it needs is made before and costs the same for every N
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/copy_chunk.h"
#include "bench/dispatcher_driver.h"
#include "bench/sample_messages.h"
#include "broker/entry_codec.h"
#include "broker/line_index.h"
#include "client/bench/histogram.h"
#include "common/model/cron.h"
#include "common/wire/codec.h"

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_TOGGLE_COLLECT  // then what the client sends is counted too
#endif

namespace millrace::bench {
namespace {

constexpr std::uint32_t kWaiting = 10'000;  // jobs

std::size_t sink = 0;  // keeps results alive

[[noreturn]] void Stop(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

using Path = std::function<std::function<void()>()>;  // prepares, and returns what is counted

Path Encoding(wire::Message (SampleMessages::*make)()) {
  return [make] { return [m = (SampleMessages{}.*make)()] { sink += wire::Encode(m).size(); }; };
}
Path Decoding(wire::Message (SampleMessages::*make)()) {
  return [make] {
    return [frame = wire::Encode((SampleMessages{}.*make)())] { sink += wire::Decode(frame).has_value() ? 1U : 0U; };
  };
}

Path Entries(bool decode) {
  return [decode]() -> std::function<void()> {
    const JobSpec job = SampleMessages{}.Job(7);
    const LineKey line = SampleMessages::LineOf(job);
    if (!decode) return [job, line] { sink += EncodeEntry(job, {}, line).size(); };
    return
        [bytes = EncodeEntry(job, {}, line), id = job.id, line] { sink += DecodeEntry(bytes, id, line).has_value() ? 1U : 0U; };
  };
}

std::function<void()> Cron() {
  auto schedule = CronSchedule::Make("15 6 * * mon-fri", "America/New_York", DstRule::kOnce);
  return [schedule = std::move(*schedule), at = FakeClock{}.WallNow()]() mutable {
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

Path Steps(DriverOptions options) {
  return [options]() -> std::function<void()> {
    auto driver = std::make_shared<DispatcherDriver>(options);
    return [driver] {
      CALLGRIND_TOGGLE_COLLECT;
      driver->Prepare(1);  // as late as a broker decodes it: it is in the caches, and its memory is used again at once
      CALLGRIND_TOGGLE_COLLECT;
      driver->Step();
      if (!driver->AllEndedBut(driver->open_jobs())) Stop("not each job was accepted, recorded and ended, once");
    };
  };
}

std::function<void()> CopyEncode() {
  auto chunk = CopyChunk::Make();
  if (!chunk) Stop(chunk.error().message);
  return [chunk = std::shared_ptr<CopyChunk>(std::move(*chunk))] { sink += chunk->Encode() ? chunk->encoded().size() : 0; };
}

const std::map<std::string, Path>& Paths() {
  static const std::map<std::string, Path> paths{
      {"submit_encode_100", Encoding(&SampleMessages::Submit)},
      {"submit_decode_100", Decoding(&SampleMessages::Submit)},
      {"accepted_encode_100", Encoding(&SampleMessages::Accepted)},
      {"accepted_decode_100", Decoding(&SampleMessages::Accepted)},
      {"grant_encode_100", Encoding(&SampleMessages::Grant)},
      {"grant_decode_100", Decoding(&SampleMessages::Grant)},
      {"ended_encode_100", Encoding(&SampleMessages::Ended)},
      {"ended_decode_100", Decoding(&SampleMessages::Ended)},
      {"entry_encode", Entries(false)},
      {"entry_decode", Entries(true)},
      {"cron_next", Cron},
      {"copy_encode_2048_rows", CopyEncode},
      {"step_ledger_100", Steps({.durability = Durability::kLedger})},
      {"step_redis_100", Steps({.durability = Durability::kRedis})},
      {"step_redis_waiting_100", Steps({.durability = Durability::kRedis, .waiting = kWaiting})},
      {"step_redis_crowd_100", Steps({.durability = Durability::kRedis, .crowd = true, .waiting = kWaiting})},
      {"line_turn_10000_keys", Lines},
      {"job_id",
       [] { return [samples = std::make_shared<SampleMessages>()] { sink += samples->ids().Next<JobId>().uuid.bytes[15]; }; }},
      {"histogram_add",
       [] { return [h = std::make_shared<Histogram>(), v = std::int64_t{1}]() mutable { h->Add(v = v * 31 % 1'000'003); }; }},
  };
  return paths;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  using namespace millrace::bench;
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
