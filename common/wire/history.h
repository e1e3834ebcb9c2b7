// Messages as operations of the history (common/base/history.h): a submit, a grant, the end of an attempt. Both ends record
// what they send and what they receive, each for itself.
#pragma once

#include <string_view>

#include "common/wire/messages.h"

namespace millrace::wire {

// `who`: role and id of the process. Nothing happens unless a history is written. Thread-safe.
void RecordMessage(std::string_view who, const Message& message);

}  // namespace millrace::wire
