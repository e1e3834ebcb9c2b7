#include "common/wire/endpoint.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string_view>

namespace millrace::wire {
namespace {

constexpr std::string_view kTcp = "tcp://", kIpc = "ipc://", kInproc = "inproc://";

bool IsLoopbackV4(std::string_view host) {
  if (!host.starts_with("127.")) return false;
  return std::ranges::all_of(host, [](char c) { return c == '.' || (c >= '0' && c <= '9'); });
}

template <class Address>
std::string Bytes(const Address& address, std::size_t size = sizeof(Address)) {
  return {reinterpret_cast<const char*>(&address), size};
}

std::optional<std::uint16_t> ParsePort(std::string_view text) {
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return port;
}

std::optional<std::string> TcpAddress(std::string_view host, std::string_view port_text) {
  const auto port = ParsePort(port_text);
  if (!port) return std::nullopt;
  if (host == "[::1]") {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(*port);
    address.sin6_addr = in6addr_loopback;
    return Bytes(address);
  }
  // What a resolver says of "localhost" is not ours to trust.
  const std::string literal(host == "localhost" ? "127.0.0.1" : host);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(*port);
  if (::inet_pton(AF_INET, literal.c_str(), &address.sin_addr) != 1) return std::nullopt;
  return Bytes(address);
}

std::optional<std::string> UnixAddress(std::string_view path) {
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path || path.find('\0') != std::string_view::npos) return std::nullopt;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  const bool abstract = path.front() == '@';
  if (abstract) address.sun_path[0] = '\0';
  return Bytes(address, offsetof(sockaddr_un, sun_path) + path.size() + (abstract ? 0 : 1));
}

}  // namespace

Result<void> CheckLocalEndpoint(const std::string& endpoint) {
  const std::string_view all = endpoint;
  for (const std::string_view local : {kInproc, kIpc}) {
    if (all.starts_with(local) && all.size() > local.size()) return {};
  }
  const auto colon = all.rfind(':');
  if (!all.starts_with(kTcp) || colon == std::string_view::npos || colon < kTcp.size() || colon + 1 == all.size())
    return Fail(ErrorCode::kInvalidArgument, "endpoint '{}' is not tcp://HOST:PORT, ipc://PATH or inproc://NAME", endpoint);
  const std::string_view host = all.substr(kTcp.size(), colon - kTcp.size());
  if (host == "localhost" || host == "[::1]" || IsLoopbackV4(host)) return {};
  return Fail(ErrorCode::kUnsupported,
              "endpoint '{}' is not on this host: this version has no encryption on the wire (CURVE), so use "
              "tcp://127.0.0.1:PORT, tcp://[::1]:PORT, ipc:// or inproc://",
              endpoint);
}

Result<Endpoint> ParseEndpoint(const std::string& endpoint) {
  MILLRACE_TRY(CheckLocalEndpoint(endpoint));
  const std::string_view all = endpoint;
  if (all.starts_with(kInproc))
    return Endpoint{.kind = Endpoint::Kind::kInproc, .name = endpoint.substr(kInproc.size()), .address = {}};
  if (all.starts_with(kIpc)) {
    auto address = UnixAddress(all.substr(kIpc.size()));
    if (!address)
      return Fail(ErrorCode::kInvalidArgument, "endpoint '{}': the path of a socket has at most {} bytes", endpoint,
                  sizeof(sockaddr_un::sun_path) - 1);
    return Endpoint{.kind = Endpoint::Kind::kIpc, .name = endpoint.substr(kIpc.size()), .address = std::move(*address)};
  }
  const auto colon = all.rfind(':');
  auto address = TcpAddress(all.substr(kTcp.size(), colon - kTcp.size()), all.substr(colon + 1));
  if (!address) return Fail(ErrorCode::kInvalidArgument, "endpoint '{}' has no such address or port", endpoint);
  return Endpoint{.kind = Endpoint::Kind::kTcp, .name = {}, .address = std::move(*address)};
}

}  // namespace millrace::wire
