// The name that stands for all queues of an org.
#pragma once

#include <string_view>

namespace millrace {

// Queue settings of this name are of the whole org: budgets of all its queues together (max_waiting_jobs, max_waiting_bytes),
// and nothing else. No job has it as its queue.
inline constexpr std::string_view kWholeOrg = "*";

}  // namespace millrace
