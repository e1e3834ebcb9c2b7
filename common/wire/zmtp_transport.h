// Transport that speaks ZMTP 3.1, ZeroMQ's protocol, itself: TCP and UNIX sockets in the thread that owns it, with epoll and no
// other thread. The peers may be of this class or of any ZeroMQ 4 library: DEALER sockets at a ServerSocket, a ROUTER at a
// ClientSocket.
//
// Endpoints: endpoint.h. An inproc:// name is found by the transports that share its LocalNames.
// Bind and Connect: kUnsupported for an endpoint off this host, kInvalidArgument for a malformed one, kConflict for an address
// in use. Send: kInvalidArgument for a frame over kFrameBytesMax; kLimit (ServerSocket) or kUnavailable (ClientSocket) when
// 1000 messages or 32 MiB wait for the peer; on a client socket kUnavailable while there is no connection. What Send took
// leaves with the next Flush or Wait of the transport, at most 500 ms after the socket's end; whether it arrives is not known.
//
// A peer that speaks something else, sends a frame over kFrameBytesMax, does not finish its handshake within 5 s or is silent
// for 6 s, also to a PING, is disconnected, with a line in the log. A peer with the identity of another one is, too.
// Messages that are not one frame are dropped. A peer costs one unfinished frame of memory; what the sockets have read ahead
// is limited for all peers together, and each peer has its turn.
//
// Sockets may outlive their transport: then Send and Receive still work, as far as they need no Wait.
#pragma once

#include <memory>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/wire/transport.h"

namespace millrace::wire {

inline constexpr std::string_view kZmtpVersion = "3.1";

class LocalNames;
std::shared_ptr<LocalNames> MakeLocalNames();  // thread-safe

// How a transport behaves in time. The defaults are the product's.
struct ZmtpTimes {
  Millis handshake{5000};
  Millis heartbeat{2000}, heartbeat_timeout{6000};
  Millis reconnect_min{50}, reconnect_max{1000};
  Millis linger{500};
};

// One per thread. Without `names`, its inproc:// endpoints are its own. kUnavailable: out of descriptors.
Result<std::unique_ptr<Transport>> MakeZmtpTransport(std::shared_ptr<LocalNames> names = nullptr, const ZmtpTimes& times = {});

}  // namespace millrace::wire
