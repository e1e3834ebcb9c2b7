// The texts beside a job and of a queue that other roles may write by SQL: options and queue settings. What is accepted keeps
// its limits and is stable: written and read again it is the same; what is refused says why.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "common/base/limits.h"
#include "common/model/job_options.h"
#include "common/model/queue_settings.h"
#include "common/wire/check_job.h"
#include "tests/fuzz/accepted.h"

namespace {

constexpr millrace::WallTime kNow{std::chrono::days{20'000}};

void CheckRefusal(const millrace::Error& error) {
  if (error.code != millrace::ErrorCode::kInvalidArgument || error.message.empty()) std::abort();
}

void CheckOptions(std::string_view text) {
  const auto options = millrace::JobOptionsFromJson(text);
  if (!options) return CheckRefusal(options.error());
  ++millrace::fuzz::accepted;
  if (options->limit_key.size() > millrace::kNameBytesMax || options->unique_key.size() > millrace::kNameBytesMax ||
      options->no_retry.size() > millrace::kNoRetryClassesMax || options->unique_window.count() < 0)
    std::abort();
  const auto again = millrace::JobOptionsFromJson(millrace::ToJson(*options));
  if (!again || *again != *options) std::abort();
  (void)millrace::EndOfWait(*options, {});
  millrace::JobSpec job;
  job.id.uuid.bytes[0] = 1;
  job.kind = "noop";
  job.options = *options;
  // The ledger adds the window of what is accepted to its clock's time.
  if (millrace::wire::CheckJob(job) && kNow + options->unique_window < kNow) std::abort();
}

void CheckSettings(std::string_view text) {
  auto settings = millrace::QueueSettingsFromJson(text);
  if (!settings) return CheckRefusal(settings.error());
  const std::string written = millrace::ToJson(*settings);
  const auto again = millrace::QueueSettingsFromJson(written);
  if (!again || *again != *settings || written.size() > millrace::kQueueSettingsBytesMax) std::abort();
  settings->queue = "q";
  if (!millrace::Validate(*settings)) std::abort();
}

// "100/1s" as `millrace queue set` takes it: the text of a rate without a burst is read as that rate.
void CheckRate(std::string_view text) {
  const auto rate = millrace::ParseRate("rate", text);
  if (!rate) return CheckRefusal(rate.error());
  const auto again = millrace::ParseRate("rate", millrace::ToString(*rate));
  if (!again || *again != *rate) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  CheckOptions(text);
  CheckSettings(text);
  CheckRate(text);
  return 0;
}
