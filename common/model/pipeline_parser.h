// From the text of a pipeline file to a Pipeline, or to everything that is wrong with it. The language: ops/docs/pipeline.md.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/model/pipeline.h"

namespace millrace {

inline constexpr std::size_t kDiagnosticsMax = 20;  // of one file; the rest is not reported

struct ParseOptions {
  // Says what is wrong with a schedule's cron expression, time zone or catch-up; nothing if it is right. Empty: the rules of
  // common/model/cron.h.
  std::function<std::optional<std::string>(const ScheduleSpec&)> schedule_validator;
};

struct ParseResult {
  std::optional<Pipeline> pipeline;     // absent if there is any diagnostic
  std::vector<Diagnostic> diagnostics;  // in file order, at most kDiagnosticsMax
};

// `file_name` is only for messages. Pure; thread-safe if the validator is. Never throws.
ParseResult ParsePipeline(std::string_view source, std::string_view file_name, const ParseOptions& options = {});

// All diagnostics rendered one after another.
std::string RenderAll(const std::vector<Diagnostic>& diagnostics, std::string_view source);

}  // namespace millrace
