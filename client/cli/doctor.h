// What an installation needs, looked at one by one.
#pragma once

#include <string>
#include <vector>

#include "client/cli/context.h"

namespace millrace::cli {

struct Finding {
  std::string check;  // "ledger", "queue", ...
  bool ok = false;
  std::string found;  // version, path, or what is wrong
  std::string fix;    // empty when ok
};
std::vector<Finding> Examine(Context& context);

}  // namespace millrace::cli
