// The wire codec, a message of 100 jobs at a time: submit, its answer, grant and reports; and the queue's entry of one job.
#include <benchmark/benchmark.h>

#include <string>

#include "bench/sample_messages.h"
#include "broker/entry_codec.h"
#include "common/wire/codec.h"

namespace millrace::bench {
namespace {

using Make = wire::Message (SampleMessages::*)();

void Count(benchmark::State& state, std::int64_t items, std::size_t bytes) {
  state.SetItemsProcessed(state.iterations() * items);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
}

// Whether a message comes back from its frame as it was. False: the bench ends.
bool ComesBack(benchmark::State& state, const wire::Message& message, const std::string& frame) {
  const auto back = wire::Decode(frame);
  if (back && *back == message) return true;
  state.SkipWithError("what was encoded does not come back");
  return false;
}

void Encode(benchmark::State& state, Make make) {
  SampleMessages samples;
  const wire::Message message = (samples.*make)();
  const std::string frame = wire::Encode(message);
  if (!ComesBack(state, message, frame)) return;
  for (auto _ : state) benchmark::DoNotOptimize(wire::Encode(message));
  Count(state, kBatch, frame.size());
}
void Decode(benchmark::State& state, Make make) {
  SampleMessages samples;
  const wire::Message message = (samples.*make)();
  const std::string frame = wire::Encode(message);
  if (!ComesBack(state, message, frame)) return;
  for (auto _ : state) benchmark::DoNotOptimize(wire::Decode(frame));
  Count(state, kBatch, frame.size());
}
BENCHMARK_CAPTURE(Encode, submit, &SampleMessages::Submit);
BENCHMARK_CAPTURE(Decode, submit, &SampleMessages::Submit);
BENCHMARK_CAPTURE(Encode, accepted, &SampleMessages::Accepted);
BENCHMARK_CAPTURE(Decode, accepted, &SampleMessages::Accepted);
BENCHMARK_CAPTURE(Encode, grant, &SampleMessages::Grant);
BENCHMARK_CAPTURE(Decode, grant, &SampleMessages::Grant);
BENCHMARK_CAPTURE(Encode, ended, &SampleMessages::Ended);
BENCHMARK_CAPTURE(Decode, ended, &SampleMessages::Ended);

void BM_EntryEncode(benchmark::State& state) {
  const JobSpec job = SampleMessages{}.Job(7);
  const LineKey line = SampleMessages::LineOf(job);
  for (auto _ : state) benchmark::DoNotOptimize(EncodeEntry(job, {}, line));
  Count(state, 1, EncodeEntry(job, {}, line).size());
}
void BM_EntryDecode(benchmark::State& state) {
  const JobSpec job = SampleMessages{}.Job(7);
  const LineKey line = SampleMessages::LineOf(job);
  const std::string entry = EncodeEntry(job, {}, line);
  const auto back = DecodeEntry(entry, job.id, line);
  if (!back || back->spec.payload != job.payload) return state.SkipWithError("what was encoded does not come back");
  for (auto _ : state) benchmark::DoNotOptimize(DecodeEntry(entry, job.id, line));
  Count(state, 1, entry.size());
}
BENCHMARK(BM_EntryEncode);
BENCHMARK(BM_EntryDecode);

}  // namespace
}  // namespace millrace::bench

BENCHMARK_MAIN();
