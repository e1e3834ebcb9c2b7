// Where a broker listens and is reached. Nothing on the wire is encrypted in this version, so only endpoints of this host are
// accepted: tcp:// with a loopback address (127.0.0.0/8, [::1], localhost), ipc://path (ipc://@name: abstract), inproc://name.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/result.h"

namespace millrace::wire {

// The rule above on its own, for configuration checks. kInvalidArgument: malformed; kUnsupported: not on this host.
Result<void> CheckLocalEndpoint(const std::string& endpoint);

struct Endpoint {
  enum class Kind : std::uint8_t { kTcp, kIpc, kInproc };
  Kind kind;
  std::string name;     // the path of ipc, the name of inproc
  std::string address;  // of tcp and ipc: the bytes of a sockaddr
};

// Errors as CheckLocalEndpoint, and kInvalidArgument for an address or a path that no socket can have.
Result<Endpoint> ParseEndpoint(const std::string& endpoint);

}  // namespace millrace::wire
