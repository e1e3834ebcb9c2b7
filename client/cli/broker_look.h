// What a command says of a running broker, without needing one.
#pragma once

#include <string>
#include <string_view>

#include "client/cli/context.h"

namespace millrace::cli {

// After something was recorded that a broker must take up: says on stderr that none answers, if so, and how to start one.
// `what`: "the new run". Asks for at most a second.
void SayIfNobodyRuns(const Context& context, std::string_view what);

// Of a kind that Millrace's own workers do not serve: that its job waits for a worker that does. Empty for all others.
std::string ForeignKind(std::string_view kind);

}  // namespace millrace::cli
