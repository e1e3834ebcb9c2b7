// Everything that is read back from JSON: job payloads, orders, results, manifests, pipelines. What is accepted is stable:
// written and read again it is the same; what is refused says why.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "common/model/lake.h"
#include "common/model/pipeline_json.h"
#include "common/model/stage_task.h"
#include "tests/fuzz/accepted.h"

namespace {

template <class T>
bool Same(const T& a, const T& b) {
  return a == b;
}
bool Same(const millrace::StageOrder& a, const millrace::StageOrder& b) {
  const auto connection = [](const millrace::StageOrder& order) {
    return order.connection ? order.connection->name + '\n' + order.connection->type + '\n' + order.connection->dsn : "";
  };
  return a.task == b.task && a.token == b.token && a.lake == b.lake && a.scratch == b.scratch &&
         connection(a) == connection(b) && a.memory_bytes_max == b.memory_bytes_max && a.threads == b.threads &&
         a.sandbox == b.sandbox && a.fence_only == b.fence_only;
}

template <class T>
void Check(std::string_view json, millrace::Result<T> (*read)(std::string_view)) {
  const auto value = read(json);
  if (!value) {
    if (value.error().code != millrace::ErrorCode::kCorrupt || value.error().message.empty()) std::abort();
    return;
  }
  ++millrace::fuzz::accepted;
  const std::string written = millrace::ToJson(*value);
  const auto again = read(written);
  if (!again || !Same(*again, *value) || millrace::ToJson(*again) != written) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  Check<millrace::StageTask>(json, millrace::StageTaskFromJson);
  Check<millrace::CommandTask>(json, millrace::CommandTaskFromJson);
  Check<millrace::StageOrder>(json, millrace::StageOrderFromJson);
  Check<millrace::StageResult>(json, millrace::StageResultFromJson);
  Check<millrace::Manifest>(json, millrace::ManifestFromJson);
  Check<millrace::Pipeline>(json, millrace::PipelineFromJson);
  return 0;
}
