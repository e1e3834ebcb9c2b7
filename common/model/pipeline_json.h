// A pipeline as canonical JSON: what the ledger stores of a version and what its hash is taken over. Stable key order, no
// white space; a field that has its default is left out. The same pipeline always gives the same bytes.
#pragma once

#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace {

// Ends with no newline. Bytes that are not UTF-8 become U+FFFD (the parser lets none in).
std::string ToJson(const Pipeline& pipeline);
// kCorrupt names the key that is missing, unknown or of the wrong type. The result is structurally sound (the parser's
// rules on names and references were checked when it was made).
Result<Pipeline> PipelineFromJson(std::string_view json);

}  // namespace millrace
