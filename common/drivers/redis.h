// A Redis connection: our own non-blocking socket with deadlines; hiredis formats commands and parses replies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/base/secret.h"

namespace millrace::redis {

struct Endpoint {
  std::string host;  // name or address; unused with unix_path
  std::uint16_t port = 6379;
  std::string unix_path;  // a unix socket instead of TCP
  std::string user;       // ACL user; empty: the default user
  Secret password;        // empty: no AUTH
  int database = 0;
  std::string ToString() const;  // without the password
};
// "host:port", "redis://[[user]:password@]host[:port][/db]" or "unix:/path/to.sock". An IPv6 address stands in brackets.
// kInvalidArgument for anything else; kUnsupported for rediss:// (TLS). The message never contains the password.
Result<Endpoint> ParseEndpoint(std::string_view text);

// One reply as a value. The As functions turn a reply of another type into kCorrupt and an error reply into an Error whose
// code ClassifyErrorReply chooses; both name `command`.
struct Reply {
  enum class Kind : std::uint8_t { kNil, kStatus, kString, kInteger, kArray, kError };
  Kind kind = Kind::kNil;
  std::int64_t integer = 0;
  std::string text;  // of a status, string or error
  std::vector<Reply> elements;

  Result<std::int64_t> AsInteger(std::string_view command) const;
  Result<std::string_view> AsString(std::string_view command) const;  // valid while the reply is
  Result<std::optional<std::string_view>> AsOptionalString(std::string_view command) const;
  Result<std::span<const Reply>> AsArray(std::string_view command) const;  // nil reads as empty
  Result<void> AsOk(std::string_view command) const;                       // a status, whatever it says
};

// What an error reply means to the caller. kUnavailable: the server refuses for now and applied nothing (MISCONF, READONLY,
// LOADING, BUSY, NOSCRIPT, ...); kLimit: the same of this command only, because it is at its maxmemory (OOM); kRejected: it
// will refuse again (NOAUTH, WRONGPASS, NOPERM, WRONGTYPE, ERR ...).
ErrorCode ClassifyErrorReply(std::string_view text);

struct ConnectOptions {
  Millis connect_timeout{3000};
  std::size_t reply_bytes_max = 64u << 20;      // of one reply; beyond it the connection is closed
  std::size_t pipeline_bytes_max = 512u << 20;  // of all commands of one Flush
  const Clock* clock = nullptr;                 // nullptr: the system clock
};

// A Lua script on the server.
struct Script {
  std::string source;
  std::string sha;  // as the server computed it
};

// One connection, used as a pipeline: Append..., then Flush. Not thread-safe.
//
// After a failure of the connection itself it is closed for good (open() is false): make a new one.
class Connection {
 public:
  // Connects, authenticates and selects the database before min(connect_timeout, deadline). kUnavailable: nobody answers
  // there; kTimedOut; kRejected: the password or the database is refused. Resolving a host name is not cut short.
  static Result<Connection> Connect(const Endpoint& endpoint, const ConnectOptions& options, MonoTime deadline);

  Connection(Connection&&) noexcept;
  Connection& operator=(Connection&&) noexcept;
  ~Connection();

  // Adds a command to the pipeline; nothing is sent yet. REQUIRES: at least one argument, the command's name.
  void Append(std::span<const std::string_view> arguments);
  void Append(std::initializer_list<std::string_view> arguments) { Append(std::span{arguments.begin(), arguments.size()}); }
  // Adds EVALSHA. Scripts that the server lost (NOSCRIPT) are loaded and their commands sent again by Flush, unless a later
  // command of the pipeline was executed: then order would change, and the NOSCRIPT reply stays (kUnavailable).
  // REQUIRES: `script` stays where it is until Flush.
  void AppendScript(const Script& script, std::span<const std::string_view> keys, std::span<const std::string_view> arguments);
  std::size_t pending() const;

  // Sends what was appended and reads as many replies, in order; the pipeline is empty afterwards. A reply may be an error
  // reply. When the connection fails: kMaybeApplied for every command that was sent whole and not answered, kUnavailable for
  // those that were not (kTimedOut if the deadline was the reason), which the server cannot have executed.
  std::vector<Result<Reply>> Flush(MonoTime deadline);

  // Append + Flush of one command.
  Result<Reply> Call(std::initializer_list<std::string_view> arguments, MonoTime deadline);
  // SCRIPT LOAD.
  Result<Script> Load(std::string source, MonoTime deadline);

  bool open() const;
  const std::string& peer() const;  // for messages

 private:
  struct Impl;
  explicit Connection(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace::redis
