// What is too long for a result, as a file in the lake: "results/<run>/<job>-<token>". The names of the folders sort by time,
// so that what is old can be removed by name (client/cli/retention.h).
#pragma once

#include <string>
#include <string_view>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/model/stage_task.h"

namespace millrace::worker {

// Writes `bytes` under `lake` and returns when they are durable. Repeatable: the same attempt writes the same name.
// kUnavailable: the file system refuses.
Result<ResultFile> WriteResultFile(const std::string& lake, RunId run, JobId job, Token token, std::string_view bytes);

// What a command left at `path`, moved into `result`: as `output`, or as `output_file` in the lake. No file is no output.
// kLimit: more than kOutputBytesMax. kInvalidArgument: something else than a plain file is there.
Result<void> TakeOutput(const std::string& path, const std::string& lake, RunId run, JobId job, Token token,
                        StageResult& result);

// `result` as JSON of at most kResultBytesMax: what is longer is kept in the lake as a whole and shortened to its counts here.
// When even the lake refuses, the counts are all that is left.
std::string ResultJson(const StageResult& result, const std::string& lake, RunId run, JobId job, Token token);

}  // namespace millrace::worker
