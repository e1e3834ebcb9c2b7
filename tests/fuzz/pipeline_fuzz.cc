// The pipeline parser takes any bytes; what it accepts survives its JSON form, and what it refuses can be rendered.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "tests/fuzz/accepted.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  const auto result = millrace::ParsePipeline(source, "fuzz.yaml");
  if (result.pipeline.has_value() != result.diagnostics.empty()) std::abort();
  if (result.diagnostics.size() > millrace::kDiagnosticsMax) std::abort();
  if (!result.pipeline) {
    if (millrace::RenderAll(result.diagnostics, source).empty()) std::abort();
    return 0;
  }
  ++millrace::fuzz::accepted;
  const auto again = millrace::PipelineFromJson(millrace::ToJson(*result.pipeline));
  if (!again || *again != *result.pipeline) std::abort();
  return 0;
}
