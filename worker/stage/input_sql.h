// Datasets as readers see them: the manifest of an effect, the check that referenced source files are still the same, and a
// SELECT over the files with the pinned schema.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/model/lake.h"
#include "common/model/stage_task.h"

namespace millrace {

// Reads and checks the manifest that `input` published. kNotFound: nothing was published. kCorrupt: not a manifest, or one
// of another effect.
Result<Manifest> LoadManifest(std::string_view lake, OrgId org, std::string_view pipeline, const StageInput& input);

// Every referenced file must still be a regular file of the recorded size and mtime; if only the mtime differs, its SHA-256
// decides. kConflict names the first file that changed or is gone (error class "source_changed").
Result<void> VerifySources(const Manifest& manifest);

// One SELECT over the manifest's files, columns in the pinned order with the pinned types. No files -> a SELECT of no rows.
Result<std::string> InputSql(const Manifest& manifest, std::string_view lake);

// The absolute paths that InputSql reads.
std::vector<std::string> InputPaths(const Manifest& manifest, std::string_view lake);

}  // namespace millrace
