// A job's payload for people: shown, and edited for a requeue.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/job.h"

namespace millrace::cli {

inline constexpr std::size_t kPayloadPreviewBytes = 160;  // of a payload, in what is printed for people

// One line of printable text: what is no UTF-8 and control characters as \n, \t, \xff; "..." where the rest is missing.
std::string PayloadPreview(std::string_view payload);

// RFC 4648, padded.
std::string Base64(std::string_view bytes);

// All of `file`, "-" for standard input. kNotFound: it cannot be read. kInvalidArgument: more than kPayloadBytesMax.
Result<std::string> ReadPayload(const std::string& file);

// `given` as the payload of `again`, the repetition of the dead job `dead`. A command is given in the short form, or as the
// dead job's payload with another command or base_dir; nothing else of it may differ. kInvalidArgument says what is wrong.
Result<std::string> EditedPayload(std::string given, const JobSpec& again, JobId dead);

}  // namespace millrace::cli
