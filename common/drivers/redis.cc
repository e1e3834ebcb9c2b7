#include "common/drivers/redis.h"

#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/base/fd.h"

namespace millrace::redis {
namespace {

constexpr std::size_t kReadChunkBytes = 64u << 10;
constexpr std::size_t kReplyElementsMax = 1 << 20;  // of one reply, nested ones counted: ten bytes can ask for a million
constexpr std::size_t kReplyTextShown = 300;

struct FreeReader {
  void operator()(redisReader* reader) const noexcept { redisReaderFree(reader); }
};
struct FreeAddresses {
  void operator()(addrinfo* list) const noexcept { freeaddrinfo(list); }
};

const Clock& DefaultClock() {
  static const SystemClock clock;
  return clock;
}

// hiredis calls these while it parses: they build Reply trees in place, and answer nullptr (out of memory) rather than throw
// through C frames. Only the root is allocated by itself.
Reply* Place(const redisReadTask* task) try {
  if (task->parent == nullptr) return new Reply;
  return &static_cast<Reply*>(task->parent->obj)->elements[static_cast<std::size_t>(task->idx)];
} catch (...) {
  return nullptr;
}

void* MakeString(const redisReadTask* task, char* bytes, std::size_t size) try {
  Reply* reply = Place(task);
  if (reply == nullptr) return nullptr;
  reply->kind = task->type == REDIS_REPLY_STATUS  ? Reply::Kind::kStatus
                : task->type == REDIS_REPLY_ERROR ? Reply::Kind::kError
                                                  : Reply::Kind::kString;
  reply->text.assign(bytes, size);
  return reply;
} catch (...) {
  return nullptr;
}

void* MakeArray(const redisReadTask* task, int elements) try {
  auto& used = *static_cast<std::size_t*>(task->privdata);
  const std::size_t wanted = elements > 0 ? static_cast<std::size_t>(elements) : 0;
  if (wanted > kReplyElementsMax - used) return nullptr;
  used += wanted;
  Reply* reply = Place(task);
  if (reply == nullptr) return nullptr;
  reply->kind = Reply::Kind::kArray;
  reply->elements.resize(wanted);
  return reply;
} catch (...) {
  return nullptr;
}

void* MakeInteger(const redisReadTask* task, long long value) {
  Reply* reply = Place(task);
  if (reply == nullptr) return nullptr;
  reply->kind = Reply::Kind::kInteger;
  reply->integer = value;
  return reply;
}

void* MakeNil(const redisReadTask* task) { return Place(task); }
void FreeRoot(void* reply) { delete static_cast<Reply*>(reply); }

redisReplyObjectFunctions kBuildReply = {MakeString, MakeArray, MakeInteger, MakeNil, FreeRoot};

std::string_view Shown(std::string_view text) { return text.substr(0, kReplyTextShown); }

std::unexpected<Error> WrongType(std::string_view command, std::string_view wanted, const Reply& reply) {
  if (reply.kind == Reply::Kind::kError)
    return Fail(ClassifyErrorReply(reply.text), "{}: redis said '{}'", command, Shown(reply.text));
  constexpr std::array<std::string_view, 6> kNames{"nil", "status", "string", "integer", "array", "error"};
  return Fail(ErrorCode::kCorrupt, "{}: expected {}, redis answered {}", command, wanted,
              kNames[static_cast<std::size_t>(reply.kind)]);
}

template <class Int>
bool ParseNumber(std::string_view text, Int low, Int high, Int& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size() && out >= low && out <= high;
}

int PollMillis(MonoTime now, MonoTime deadline) {
  const auto left = std::chrono::ceil<Millis>(deadline - now).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000));
}

// True: ready. False: the deadline passed.
Result<bool> WaitReady(int fd, short events, const Clock& clock, MonoTime deadline) {
  while (true) {
    const MonoTime now = clock.Now();
    pollfd poller{fd, events, 0};
    const int ready = ::poll(&poller, 1, PollMillis(now, deadline));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return Fail(ErrorCode::kUnavailable, "poll: {}", std::strerror(errno));
    if (clock.Now() >= deadline) return false;
  }
}

Result<Fd> ConnectAddress(int family, const sockaddr* address, socklen_t size, const std::string& peer, const Clock& clock,
                          MonoTime deadline) {
  Fd fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return Fail(ErrorCode::kUnavailable, "redis {}: socket: {}", peer, std::strerror(errno));
  if (family != AF_UNIX) {
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  }
  if (::connect(fd.get(), address, size) != 0) {
    if (errno != EINPROGRESS) return Fail(ErrorCode::kUnavailable, "redis {}: connect: {}", peer, std::strerror(errno));
    MILLRACE_TRY_ASSIGN(const bool ready, WaitReady(fd.get(), POLLOUT, clock, deadline));
    if (!ready) return Fail(ErrorCode::kTimedOut, "redis {}: no connection before the deadline", peer);
    int error = 0;
    socklen_t error_size = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &error_size);
    if (error != 0) return Fail(ErrorCode::kUnavailable, "redis {}: connect: {}", peer, std::strerror(error));
  }
  return fd;
}

Result<Fd> Dial(const Endpoint& endpoint, const Clock& clock, MonoTime deadline) {
  const std::string peer = endpoint.ToString();
  if (!endpoint.unix_path.empty()) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (endpoint.unix_path.size() >= sizeof address.sun_path)
      return Fail(ErrorCode::kInvalidArgument, "redis {}: the socket path is longer than {} bytes", peer,
                  sizeof address.sun_path - 1);
    std::memcpy(address.sun_path, endpoint.unix_path.data(), endpoint.unix_path.size());
    return ConnectAddress(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof address, peer, clock, deadline);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_ADDRCONFIG | AI_NUMERICSERV;
  addrinfo* raw = nullptr;
  const int code = ::getaddrinfo(endpoint.host.c_str(), std::to_string(endpoint.port).c_str(), &hints, &raw);
  if (code != 0) return Fail(ErrorCode::kUnavailable, "redis {}: cannot resolve the host: {}", peer, gai_strerror(code));
  const std::unique_ptr<addrinfo, FreeAddresses> addresses(raw);
  Result<Fd> fd = Fail(ErrorCode::kUnavailable, "redis {}: the host has no address", peer);
  for (const addrinfo* each = raw; each != nullptr && !fd; each = each->ai_next)
    fd = ConnectAddress(each->ai_family, each->ai_addr, each->ai_addrlen, peer, clock, deadline);
  return fd;
}

}  // namespace

// ---- Endpoint, Reply ---------------------------------------------------------------------------------------------------

std::string Endpoint::ToString() const {
  if (!unix_path.empty()) return "unix:" + unix_path;
  const bool v6 = host.find(':') != std::string::npos;
  std::string text = v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
  if (database != 0) text += fmt::format("/{}", database);
  return text;
}

Result<Endpoint> ParseEndpoint(std::string_view text) {
  const auto bad = [](std::string_view what) {
    return Fail(ErrorCode::kInvalidArgument,
                "redis endpoint: {}; write host:port, redis://[:password@]host:port[/db] or unix:/path", what);
  };
  Endpoint endpoint;
  if (text.starts_with("rediss://"))
    return Fail(ErrorCode::kUnsupported, "redis endpoint: rediss:// (TLS) is not supported; use a tunnel");
  if (text.starts_with("unix:")) {
    endpoint.unix_path = text.substr(5);
    if (!endpoint.unix_path.starts_with('/')) return bad("the socket path is not absolute");
    return endpoint;
  }
  const bool url = text.starts_with("redis://");
  if (url) text.remove_prefix(8);
  if (const auto at = text.rfind('@'); at != std::string_view::npos) {
    const std::string_view login = text.substr(0, at);
    const auto colon = login.find(':');
    if (!url || colon == std::string_view::npos) return bad("the login is not user:password or :password");
    endpoint.user = login.substr(0, colon);
    endpoint.password = Secret::CopyOf(login.substr(colon + 1));
    text.remove_prefix(at + 1);
  }
  if (const auto slash = text.find('/'); slash != std::string_view::npos) {
    const std::string_view database = text.substr(slash + 1);
    if (!url || (!database.empty() && !ParseNumber(database, 0, 1'000'000, endpoint.database)))
      return bad("the database is not a number");
    text = text.substr(0, slash);
  }
  std::string_view port;
  if (text.starts_with('[')) {
    const auto end = text.find(']');
    if (end == std::string_view::npos) return bad("']' is missing");
    endpoint.host = text.substr(1, end - 1);
    port = text.substr(end + 1);
    if (!port.empty() && !port.starts_with(':')) return bad("the port is not a number in [1, 65535]");
  } else {
    const auto colon = text.find(':');
    endpoint.host = text.substr(0, colon);
    if (colon != std::string_view::npos) port = text.substr(colon);
  }
  if (endpoint.host.empty()) return bad("the host is empty");
  if (port.empty() && !url) return bad("the port is missing");
  if (!port.empty() && !ParseNumber<std::uint16_t>(port.substr(1), 1, 65535, endpoint.port))
    return bad("the port is not a number in [1, 65535]");
  return endpoint;
}

ErrorCode ClassifyErrorReply(std::string_view text) {
  constexpr std::array<std::string_view, 12> kForNow{"MISCONF ",    "READONLY ",   "LOADING ",     "BUSY ",
                                                     "NOSCRIPT ",   "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ",
                                                     "NOREPLICAS ", "MOVED ",      "ASK ",         "ERR max number of clients"};
  // Redis 6.2 wraps what a command inside a script said: "ERR Error running script (...): @user_script: 4: -OOM command ...".
  if (const auto inner = text.find(": -"); text.starts_with("ERR Error running script") && inner != std::string_view::npos)
    text.remove_prefix(inner + 3);
  if (text.starts_with("OOM ")) return ErrorCode::kLimit;
  const bool for_now = std::ranges::any_of(kForNow, [&](std::string_view prefix) { return text.starts_with(prefix); });
  return for_now ? ErrorCode::kUnavailable : ErrorCode::kRejected;
}

Result<std::int64_t> Reply::AsInteger(std::string_view command) const {
  if (kind == Kind::kInteger) return integer;
  return WrongType(command, "an integer", *this);
}
Result<std::string_view> Reply::AsString(std::string_view command) const {
  if (kind == Kind::kString || kind == Kind::kStatus) return std::string_view{text};
  return WrongType(command, "a string", *this);
}
Result<std::optional<std::string_view>> Reply::AsOptionalString(std::string_view command) const {
  if (kind == Kind::kNil) return std::optional<std::string_view>{};
  MILLRACE_TRY_ASSIGN(const std::string_view value, AsString(command));
  return std::optional<std::string_view>{value};
}
Result<std::span<const Reply>> Reply::AsArray(std::string_view command) const {
  if (kind == Kind::kArray || kind == Kind::kNil) return std::span<const Reply>{elements};
  return WrongType(command, "an array", *this);
}
Result<void> Reply::AsOk(std::string_view command) const {
  if (kind == Kind::kStatus) return {};
  return WrongType(command, "a status", *this);
}

// ---- Connection --------------------------------------------------------------------------------------------------------

struct Connection::Impl {
  struct Command {
    std::size_t end = 0;             // its last byte + 1 in `out`
    const Script* script = nullptr;  // of an AppendScript: what to load after NOSCRIPT
  };

  Fd fd;
  std::string peer;
  const Clock* clock = nullptr;
  std::size_t reply_bytes_max = 0;
  std::size_t pipeline_bytes_max = 0;
  std::unique_ptr<redisReader, FreeReader> reader;
  // Not on the stack: what is there is zeroed each time (ops/cmake/MillraceFlags.cmake).
  const std::unique_ptr<char[]> chunk = std::make_unique_for_overwrite<char[]>(kReadChunkBytes);
  std::size_t reply_bytes = 0;     // received since the last complete reply
  std::size_t reply_elements = 0;  // made since then; MakeArray counts them
  std::string out;
  std::vector<Command> commands;
  std::vector<std::string> loaded;  // sources of scripts

  // The stream is out of step or gone: nothing more can be learned from it.
  void Close() { fd.Close(); }

  std::vector<Result<Reply>> Exchange(const std::string& bytes, std::span<const Command> sent_commands, MonoTime deadline);
  Result<void> Receive(std::vector<Result<Reply>>& replies);
  bool PeerHasClosed() const;
};

Connection::Connection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Connection::Connection(Connection&&) noexcept = default;
Connection& Connection::operator=(Connection&&) noexcept = default;
Connection::~Connection() = default;

bool Connection::open() const { return static_cast<bool>(impl_->fd); }
const std::string& Connection::peer() const { return impl_->peer; }
std::size_t Connection::pending() const { return impl_->commands.size(); }

Result<Connection> Connection::Connect(const Endpoint& endpoint, const ConnectOptions& options, MonoTime deadline) {
  auto impl = std::make_unique<Impl>();
  impl->clock = options.clock != nullptr ? options.clock : &DefaultClock();
  impl->peer = endpoint.ToString();
  impl->reply_bytes_max = options.reply_bytes_max;
  impl->pipeline_bytes_max = options.pipeline_bytes_max;
  deadline = std::min(deadline, impl->clock->Now() + options.connect_timeout);
  MILLRACE_TRY_ASSIGN(impl->fd, Dial(endpoint, *impl->clock, deadline));
  impl->reader.reset(redisReaderCreateWithFunctions(&kBuildReply));
  MILLRACE_CHECK(impl->reader != nullptr, "redis: out of memory");
  impl->reader->privdata = &impl->reply_elements;

  Connection connection(std::move(impl));
  if (!endpoint.password.empty()) {
    const std::string_view password = endpoint.password.Reveal();
    if (endpoint.user.empty())
      connection.Append({"AUTH", password});
    else
      connection.Append({"AUTH", endpoint.user, password});
  }
  connection.Append({"PING"});
  if (endpoint.database != 0) connection.Append({"SELECT", std::to_string(endpoint.database)});
  for (Result<Reply>& reply : connection.Flush(deadline)) {
    Result<void> ok = reply ? reply->AsOk("connect") : Result<void>(std::unexpected(std::move(reply.error())));
    if (ok) continue;
    // Nothing that was sent so far could change anything.
    if (ok.error().code == ErrorCode::kMaybeApplied) ok.error().code = ErrorCode::kUnavailable;
    return Prefixed(std::move(ok.error()), "redis {}", connection.peer());
  }
  return connection;
}

// "*3\r\n" before the arguments of a command, "$5\r\n" before each.
static void AppendHead(std::string& out, char kind, std::size_t size) {
  std::array<char, 24> text;
  text[0] = kind;
  char* end = std::to_chars(text.data() + 1, text.data() + text.size() - 2, size).ptr;
  *end++ = '\r';
  *end++ = '\n';
  out.append(text.data(), end);
}

void Connection::Append(std::span<const std::string_view> arguments) {
  MILLRACE_CHECK(!arguments.empty() && arguments.size() < 1'000'000, "redis: a command of {} arguments", arguments.size());
  std::string& out = impl_->out;
  AppendHead(out, '*', arguments.size());
  for (const std::string_view argument : arguments) {
    AppendHead(out, '$', argument.size());
    out.append(argument).append("\r\n");
  }
  impl_->commands.push_back({.end = impl_->out.size()});
}

void Connection::AppendScript(const Script& script, std::span<const std::string_view> keys,
                              std::span<const std::string_view> arguments) {
  const std::string key_count = std::to_string(keys.size());
  std::vector<std::string_view> all{"EVALSHA", script.sha, key_count};
  all.reserve(all.size() + keys.size() + arguments.size());
  all.insert(all.end(), keys.begin(), keys.end());
  all.insert(all.end(), arguments.begin(), arguments.end());
  Append(all);
  impl_->commands.back().script = &script;
}

// An idle connection whose server went away is noticed before anything is sent, so that the outcome is not in doubt.
bool Connection::Impl::PeerHasClosed() const {
  char byte = 0;
  const ssize_t got = ::recv(fd.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

Result<void> Connection::Impl::Receive(std::vector<Result<Reply>>& replies) {
  while (true) {
    const ssize_t got = ::recv(fd.get(), chunk.get(), kReadChunkBytes, 0);
    if (got == 0) return Fail(ErrorCode::kUnavailable, "the server closed the connection");
    if (got < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return {};
      if (errno == EINTR) continue;
      return Fail(ErrorCode::kUnavailable, "{}", std::strerror(errno));
    }
    reply_bytes += static_cast<std::size_t>(got);
    redisReaderFeed(reader.get(), chunk.get(), static_cast<std::size_t>(got));
    while (true) {
      void* raw = nullptr;
      if (redisReaderGetReply(reader.get(), &raw) != REDIS_OK)
        return Fail(ErrorCode::kCorrupt, "not a redis reply: {}", reader->errstr);
      if (raw == nullptr) break;
      const std::unique_ptr<Reply> reply(static_cast<Reply*>(raw));
      replies.emplace_back(std::move(*reply));
      reply_bytes = reader->len - reader->pos;
      reply_elements = 0;
    }
    if (reply_bytes > reply_bytes_max)
      return Fail(ErrorCode::kLimit, "a reply is larger than reply_bytes_max ({})", reply_bytes_max);
    if (static_cast<std::size_t>(got) < kReadChunkBytes) return {};
  }
}

std::vector<Result<Reply>> Connection::Impl::Exchange(const std::string& bytes, std::span<const Command> sent_commands,
                                                      MonoTime deadline) {
  std::vector<Result<Reply>> replies;
  replies.reserve(sent_commands.size());
  std::size_t sent = 0;
  bool late = false;
  std::string reason;
  if (!fd || PeerHasClosed()) reason = "the connection is closed";
  while (reason.empty() && replies.size() < sent_commands.size()) {
    if (sent < bytes.size()) {
      const ssize_t put = ::send(fd.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (put >= 0)
        sent += static_cast<std::size_t>(put);
      else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        reason = std::strerror(errno);
    }
    if (!reason.empty()) break;
    const short events = static_cast<short>(POLLIN | (sent < bytes.size() ? POLLOUT : 0));
    const Result<bool> ready = WaitReady(fd.get(), events, *clock, deadline);
    if (!ready)
      reason = ready.error().message;
    else if (!*ready)
      late = true, reason = "no answer before the deadline";
    else if (const Result<void> received = Receive(replies); !received)
      reason = received.error().message;
  }
  if (replies.size() > sent_commands.size()) reason = "more replies than commands", replies.clear();
  if (!reason.empty()) Close();
  for (std::size_t i = replies.size(); i < sent_commands.size(); ++i) {
    // The server executes a command only when it has all of it.
    const bool whole = sent_commands[i].end <= sent;
    const ErrorCode code = whole ? ErrorCode::kMaybeApplied : late ? ErrorCode::kTimedOut : ErrorCode::kUnavailable;
    replies.emplace_back(Fail(code, "redis {}: {}", peer, reason));
  }
  return replies;
}

std::vector<Result<Reply>> Connection::Flush(MonoTime deadline) {
  const std::string bytes = std::exchange(impl_->out, {});
  const std::vector<Impl::Command> commands = std::exchange(impl_->commands, {});
  if (bytes.size() > impl_->pipeline_bytes_max) {
    std::vector<Result<Reply>> refused;
    for (std::size_t i = 0; i < commands.size(); ++i)
      refused.emplace_back(Fail(ErrorCode::kLimit, "redis {}: a pipeline of {} bytes, limit {}", peer(), bytes.size(),
                                impl_->pipeline_bytes_max));
    return refused;
  }
  std::vector<Result<Reply>> replies = impl_->Exchange(bytes, commands, deadline);

  const auto lost = [&](std::size_t i) {
    return commands[i].script != nullptr && replies[i] && replies[i]->kind == Reply::Kind::kError &&
           replies[i]->text.starts_with("NOSCRIPT");
  };
  std::size_t first = commands.size();
  while (first > 0 && lost(first - 1)) --first;
  if (first == commands.size() || !open()) return replies;

  const std::size_t first_byte = first == 0 ? 0 : commands[first - 1].end;
  // All of them, not only those that are missed now: the next pipeline must not find one script without another.
  std::vector<std::string_view> sources(impl_->loaded.begin(), impl_->loaded.end());
  for (std::size_t i = first; i < commands.size(); ++i)
    if (std::ranges::find(sources, commands[i].script->source) == sources.end()) sources.push_back(commands[i].script->source);
  for (const std::string_view source : sources) Append({"SCRIPT", "LOAD", source});
  std::string again = std::exchange(impl_->out, {});
  std::vector<Impl::Command> again_commands = std::exchange(impl_->commands, {});
  const std::size_t shift = again.size();
  again.append(bytes, first_byte);
  for (std::size_t i = first; i < commands.size(); ++i) again_commands.push_back({.end = commands[i].end - first_byte + shift});
  std::vector<Result<Reply>> second = impl_->Exchange(again, again_commands, deadline);
  for (std::size_t i = first; i < commands.size(); ++i) replies[i] = std::move(second[sources.size() + i - first]);
  return replies;
}

Result<Reply> Connection::Call(std::initializer_list<std::string_view> arguments, MonoTime deadline) {
  MILLRACE_CHECK(pending() == 0, "redis: Call {} with {} commands pending", *arguments.begin(), pending());
  Append(arguments);
  return std::move(Flush(deadline).front());
}

Result<Script> Connection::Load(std::string source, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Reply reply, Call({"SCRIPT", "LOAD", source}, deadline));
  MILLRACE_TRY_ASSIGN(const std::string_view sha, reply.AsString("SCRIPT LOAD"));
  if (std::ranges::find(impl_->loaded, source) == impl_->loaded.end()) impl_->loaded.push_back(source);
  return Script{.source = std::move(source), .sha = std::string{sha}};
}

}  // namespace millrace::redis
