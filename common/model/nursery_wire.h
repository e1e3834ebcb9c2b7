// Between a worker and `millrace-stage --nursery`: records on a SOCK_SEQPACKET socket, the nursery's stdin. Both ends belong to
// one release on one machine, so these are plain structs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace millrace {

// Asks for a child. Carries kNurseryFds descriptors (SCM_RIGHTS), in this order: the child's stdin, its stdout and stderr, its
// fd 3. The child serves one StageOrder (stage_task.h) or one question (question_frame.h) like a millrace-stage that was
// started without arguments.
struct NurseryAsk {
  std::uint64_t id = 0;  // not 0
};
inline constexpr std::size_t kNurseryFds = 3;

// The child is a child of the worker, still in the nursery's process group: the worker gives it a group of its own. Whoever is
// in the nursery's group when the nursery is gone was never heard of, has no order, and may be killed.
struct NurseryAnswer {
  std::uint64_t id = 0;  // of the ask; 0: the nursery is warm
  std::int64_t pid = 0;  // or -errno
};

static_assert(std::is_trivially_copyable_v<NurseryAsk> && std::is_trivially_copyable_v<NurseryAnswer>);

}  // namespace millrace
