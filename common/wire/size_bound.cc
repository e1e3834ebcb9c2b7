#include "common/model/job_options.h"
#include "common/wire/codec.h"

namespace millrace::wire {
namespace {

constexpr std::size_t kRecordBytes = 160;  // more than the scalars and length bytes of any record here

std::size_t SizeBound(const JobOptions& options) {
  static const JobOptions kDefaults;
  return options == kDefaults ? 0 : kJobOptionsBytesMax;
}
}  // namespace

std::size_t SizeBound(const JobSpec& spec) {
  return kRecordBytes + spec.stage.size() + spec.kind.size() + spec.queue.size() + spec.payload.size() + spec.effect.size() +
         spec.root.size() + 18 * spec.depends_on.size() + SizeBound(spec.options);
}

std::size_t SizeBound(const Grant::Job& job) { return kRecordBytes + job.kind.size() + job.payload.size(); }

std::size_t SizeBound(const AttemptReport& report) {
  return kRecordBytes + report.error_class.size() + report.error.size() + report.result.size() + report.log_tail.size() +
         report.worker.size();
}

std::size_t SizeBound(const RunUpdate::Stage& stage) {
  return kRecordBytes + stage.stage.size() + stage.worker.size() + stage.result.size() + stage.error.size();
}

}  // namespace millrace::wire
