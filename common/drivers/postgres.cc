#include "common/drivers/postgres.h"

#include <poll.h>

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/drivers/postgres_impl.h"

namespace millrace {
namespace {

constexpr std::size_t kPreparedMax = 500;  // beyond it the texts are not "a fixed set"; the cache starts anew

std::string OneLine(std::string_view text) {
  std::string line;
  for (const char c : text) line += (c == '\n' || c == '\r' || c == '\t') ? ' ' : c;
  while (!line.empty() && line.back() == ' ') line.pop_back();
  if (line.size() > 1000) line.resize(1000);
  return line;
}

bool IsWord(std::string_view sql, std::string_view word) {
  return sql.size() == word.size() && std::equal(sql.begin(), sql.end(), word.begin(), [](char a, char b) {
           return (a >= 'A' && a <= 'Z' ? static_cast<char>(a + 32) : a) == b;
         });
}

std::string_view Field(const PGresult* result, int code) {
  const char* text = PQresultErrorField(result, code);
  return text == nullptr ? std::string_view{} : std::string_view{text};
}

// "COPY t, line 3, column name" -> "name". The line counts what one of several connections sent: it says nothing to people.
std::string CopyColumn(std::string_view context) {
  constexpr std::string_view kCopy = "COPY ", kColumn = ", column ";
  for (std::size_t at = 0; at < context.size();) {
    const std::size_t end = std::min(context.find('\n', at), context.size());
    const std::string_view line = context.substr(at, end - at);
    at = end + 1;
    const std::size_t column = line.find(kColumn);
    if (!line.starts_with(kCopy) || column == std::string_view::npos) continue;
    const std::string_view name = line.substr(column + kColumn.size());
    return OneLine(name.substr(0, name.find(": ")));  // in text form the value follows
  }
  return "";
}

ErrorCode ClassifyConnectFailure(std::string_view message) {
  for (const std::string_view refused : {"authentication failed", "no password supplied", "does not exist", "pg_hba.conf",
                                         "is not permitted to log in", "permission denied for database"})
    if (message.find(refused) != std::string_view::npos && message.find("No such file") == std::string_view::npos)
      return ErrorCode::kRejected;
  return ErrorCode::kUnavailable;
}

}  // namespace

ErrorCode ClassifySqlState(std::string_view state, bool sent) {
  const std::string_view group = state.substr(0, 2);
  if (state.empty() || group == "08" || state.starts_with("57P"))
    return sent ? ErrorCode::kMaybeApplied : ErrorCode::kUnavailable;
  if (state == "MR001") return ErrorCode::kStale;
  if (group == "40" || state == "23505" || state == "23P01" || state == "55P03") return ErrorCode::kConflict;
  if (group == "22" || group == "23") return ErrorCode::kInvalidArgument;
  if (group == "53" || group == "58" || state == "57014" || state == "25006" || state == "25P03")
    return ErrorCode::kUnavailable;
  if (state == "XX001" || state == "XX002") return ErrorCode::kCorrupt;
  return ErrorCode::kRejected;
}

// ---- waiting ---------------------------------------------------------------------------------------------------------------

Result<void> PgConnection::Impl::Poll(Wait wait, MonoTime deadline) const {
  for (;;) {
    const auto left = std::chrono::ceil<Millis>(deadline - clock->Now());
    if (left <= Millis{0}) return Fail(ErrorCode::kTimedOut, "the deadline passed");
    pollfd fd{PQsocket(get()), 0, 0};
    if (wait != Wait::kWrite) fd.events |= POLLIN;
    if (wait != Wait::kRead) fd.events |= POLLOUT;
    // Short naps, so that a clock that is not the system's is looked at again.
    const int ready = ::poll(&fd, 1, static_cast<int>(std::min<std::int64_t>(left.count(), 1000)));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return Fail(ErrorCode::kUnavailable, "poll: {}", std::strerror(errno));
  }
}

Result<void> PgConnection::Impl::CheckIdle() {
  state.clear();
  if (broken) return Fail(ErrorCode::kUnavailable, "postgres: the connection was lost");
  pollfd fd{PQsocket(get()), POLLIN, 0};
  if (::poll(&fd, 1, 0) > 0 && PQconsumeInput(get()) == 0) broken = true;
  // A server that ends a connection says why first; libpq hands that over as a notice or with the next result.
  if (!broken && (fd.revents & (POLLHUP | POLLERR | POLLRDHUP)) != 0) broken = true;
  if (!broken && (fd.revents & POLLIN) != 0 && ::poll(&fd, 1, 0) > 0 && PQconsumeInput(get()) == 0) broken = true;
  if (broken || PQstatus(get()) == CONNECTION_BAD) {
    broken = true;
    return Fail(ErrorCode::kUnavailable, "postgres: the server closed the connection");
  }
  return {};
}

Result<void> PgConnection::Impl::Flush(MonoTime deadline) {
  for (;;) {
    const int left = PQflush(get());
    if (left == 0) return {};
    if (left < 0) return Fail(ErrorCode::kUnavailable, "{}", OneLine(PQerrorMessage(get())));
    MILLRACE_TRY(Poll(Wait::kBoth, deadline));
    if (PQconsumeInput(get()) == 0) return Fail(ErrorCode::kUnavailable, "{}", OneLine(PQerrorMessage(get())));
  }
}

Result<PgResultHandle> PgConnection::Impl::Next(MonoTime deadline) {
  while (PQisBusy(get()) != 0) {
    MILLRACE_TRY(Poll(Wait::kRead, deadline));
    if (PQconsumeInput(get()) == 0) return Fail(ErrorCode::kUnavailable, "{}", OneLine(PQerrorMessage(get())));
  }
  return PgResultHandle(PQgetResult(get()));
}

Error PgConnection::Impl::ErrorOf(const PGresult* result) {
  state = std::string(Field(result, PG_DIAG_SQLSTATE));
  const std::string_view severity = Field(result, PG_DIAG_SEVERITY_NONLOCALIZED);
  if (state.empty() || severity == "FATAL" || severity == "PANIC" || PQstatus(get()) == CONNECTION_BAD) broken = true;
  std::string message = OneLine(Field(result, PG_DIAG_MESSAGE_PRIMARY));
  if (message.empty()) message = OneLine(PQresultErrorMessage(result));
  if (const auto detail = Field(result, PG_DIAG_MESSAGE_DETAIL); !detail.empty()) message += ": " + OneLine(detail);
  if (const auto column = CopyColumn(Field(result, PG_DIAG_CONTEXT)); !column.empty())
    message += fmt::format(", column '{}'", column);
  if (state == "53100") message = "the server's disk is full: " + message;
  if (!state.empty() && state != "MR001") message += fmt::format(" (SQLSTATE {})", state);
  return {ClassifySqlState(state, true), state == "MR001" ? message : "postgres: " + message};
}

// The server's last word, when it ends the session with it. One that dies in a COMMIT (its disk fails) may have it in its log
// already, and finds it there when it recovers.
Error PgConnection::Impl::LastWord(Error error, bool may_commit) const {
  if (broken) error.code = may_commit ? ErrorCode::kMaybeApplied : ErrorCode::kUnavailable;
  return error;
}

Error PgConnection::Impl::Lost(bool may_commit, std::string_view what) {
  broken = true;
  state.clear();
  if (may_commit) return {ErrorCode::kMaybeApplied, fmt::format("postgres: sent, but the answer is lost: {}", what)};
  return {ErrorCode::kUnavailable, fmt::format("postgres: the connection was lost inside a transaction: {}", what)};
}

// ---- connecting ------------------------------------------------------------------------------------------------------------

PgConnection::PgConnection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PgConnection::~PgConnection() = default;

namespace {

// The user's own `options` come first, so that ours do not wipe them out.
std::string SettingsOf(const PgOptions& options, const PgConninfo& dsn) {
  std::string text;
  if (const auto own = dsn.Value("options")) text = *own + " ";
  text +=
      fmt::format("-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={}",
                  options.statement_timeout.count(), options.lock_timeout.count(), options.idle_in_transaction_timeout.count());
  text += " -c timezone=UTC -c synchronous_commit=on -c jit=off -c client_min_messages=warning";
  // A host that vanished (no reset comes) is found by the server in 7 s and its locks go; by default that takes two hours.
  text += " -c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=5";
  if (!options.search_path.empty()) text += " -c search_path=" + options.search_path;
  return text;
}

// libpq refuses a value with 'invalid ... value: "..."' before it looks for a server. The value may be part of a password.
std::optional<Error> RefusedValue(std::string_view message) {
  constexpr std::string_view kOption = "for connection option \"";
  if (!message.starts_with("invalid ") && message.find(kOption) == std::string_view::npos) return std::nullopt;
  std::string_view option;
  if (const auto at = message.find(kOption); at != std::string_view::npos) {
    option = message.substr(at + kOption.size());
    option = option.substr(0, option.find('"'));
  }
  return Error{ErrorCode::kInvalidArgument, option.empty()
                                                ? std::string("postgres: dsn: libpq refuses one of its values")
                                                : fmt::format("postgres: dsn: libpq refuses its value for '{}'", option)};
}

}  // namespace

Result<std::unique_ptr<PgConnection>> PgConnection::Connect(const PgOptions& options, const Clock& clock, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const PgConninfo dsn, PgConninfo::Parse(options.dsn));
  MILLRACE_TRY(dsn.Check());
  const std::string settings = SettingsOf(options, dsn);
  // What comes after dbname wins over what the dsn says.
  const char* const name_key = options.application_name_wins ? "application_name" : "fallback_application_name";
  const char* const keys[] = {"dbname", name_key, "options", "tcp_user_timeout", "client_encoding", nullptr};
  const char* const values[] = {
      options.dsn.c_str(), options.application_name.c_str(), settings.c_str(), "10000", "UTF8", nullptr};
  auto impl = std::make_unique<Impl>();
  impl->clock = &clock;
  impl->connection.reset(PQconnectStartParams(keys, values, 1));
  PGconn* const c = impl->get();
  MILLRACE_CHECK(c != nullptr, "libpq: out of memory");
  PQsetNoticeProcessor(c, [](void*, const char* text) { LogDebug("postgres: {}", OneLine(text)); }, nullptr);
  auto state = PQstatus(c) == CONNECTION_BAD ? PGRES_POLLING_FAILED : PGRES_POLLING_WRITING;
  while (state != PGRES_POLLING_OK) {
    if (state == PGRES_POLLING_FAILED) {
      const std::string message = OneLine(PQerrorMessage(c));
      if (auto refused = RefusedValue(message)) return std::unexpected(std::move(*refused));
      return Fail(ClassifyConnectFailure(message), "postgres: {}", message);
    }
    const auto wait = state == PGRES_POLLING_READING ? Impl::Wait::kRead : Impl::Wait::kWrite;
    if (auto r = impl->Poll(wait, deadline); !r)
      return Fail(r.error().code, "postgres: connecting to {}:{}: {}", PQhost(c), PQport(c), r.error().message);
    state = PQconnectPoll(c);
  }
  if (PQsetnonblocking(c, 1) != 0) return Fail(ErrorCode::kUnavailable, "postgres: {}", OneLine(PQerrorMessage(c)));
  return std::unique_ptr<PgConnection>(new PgConnection(std::move(impl)));
}

bool PgConnection::broken() const { return impl_->broken; }
bool PgConnection::in_transaction() const {
  const auto status = PQtransactionStatus(impl_->get());
  return status == PQTRANS_INTRANS || status == PQTRANS_INERROR;
}
std::string_view PgConnection::last_sqlstate() const { return impl_->state; }
int PgConnection::backend_pid() const { return PQbackendPID(impl_->get()); }
int PgConnection::server_version() const { return PQserverVersion(impl_->get()); }

Result<void> PgConnection::Cancel() {
  struct Free {
    void operator()(PGcancel* cancel) const noexcept { PQfreeCancel(cancel); }
  };
  const std::unique_ptr<PGcancel, Free> cancel(PQgetCancel(impl_->get()));
  char message[256] = {};
  if (!cancel || PQcancel(cancel.get(), message, sizeof message) == 0)
    return Fail(ErrorCode::kUnavailable, "postgres: cancel: {}", OneLine(message));
  return {};
}

// ---- statements ------------------------------------------------------------------------------------------------------------

Bound PgConnection::Impl::Bind(const PgParams& params) {
  Bound bound;
  for (const auto& slot : params.slots_) {
    bound.types.push_back(slot.type);
    bound.values.push_back(slot.length < 0 ? nullptr : params.buffer_.data() + slot.offset);
    bound.lengths.push_back(static_cast<int>(std::max<std::int64_t>(slot.length, 0)));
    bound.formats.push_back(1);
  }
  return bound;
}

Result<void> PgConnection::Impl::Send(Batch& batch, MonoTime deadline) {
  std::unordered_map<std::string_view, std::string> fresh;  // prepared by this very pipeline
  bool ok = true;
  for (const PgStatement& s : batch.statements) {
    const Bound bound = Bind(s.params);
    batch.prepares.push_back(false);
    if (const auto known = prepared.find(std::string(s.sql)); known != prepared.end()) {
      batch.names.push_back(known->second);
    } else if (const auto now = fresh.find(s.sql); now != fresh.end()) {
      batch.names.push_back(now->second);
    } else {
      batch.prepares.back() = true;
      batch.names.push_back(fmt::format("m{}", ++next_name));
      fresh.emplace(s.sql, batch.names.back());
      ok = PQsendPrepare(get(), batch.names.back().c_str(), std::string(s.sql).c_str(), bound.size(), bound.types.data()) == 1;
    }
    ok = ok && PQsendQueryPrepared(get(), batch.names.back().c_str(), bound.size(), bound.values.data(), bound.lengths.data(),
                                   bound.formats.data(), 1) == 1;
    if (!ok) break;
  }
  if (!ok || PQpipelineSync(get()) == 0) return Fail(ErrorCode::kUnavailable, "{}", OneLine(PQerrorMessage(get())));
  return Flush(deadline);
}

Result<void> PgConnection::Impl::Receive(Batch& batch, std::size_t statement, MonoTime deadline) {
  for (int part = batch.prepares[statement] ? 0 : 1; part < 2; ++part) {
    for (bool first = true;; first = false) {  // a command's results end with a null
      MILLRACE_TRY_ASSIGN(PgResultHandle next, Next(deadline));
      PGresult* const r = next.get();
      if (r == nullptr) {
        if (first && !batch.error) return Fail(ErrorCode::kUnavailable, "{}", OneLine(PQerrorMessage(get())));
        break;
      }
      const auto status = PQresultStatus(r);
      if (status == PGRES_PIPELINE_ABORTED) continue;
      if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) {
        if (!batch.error) {
          batch.failed = statement;
          batch.error = ErrorOf(r);
        }
        if (broken) return {};
      } else if (part == 0) {
        prepared[std::string(batch.statements[statement].sql)] = batch.names[statement];
      } else if (first) {
        auto holder = std::make_unique<PgResult::Impl>();
        holder->result = std::move(next);
        batch.results.push_back(PgResult(std::move(holder)));
      }
    }
  }
  return {};
}

Result<void> PgConnection::Impl::EndPipeline(const Batch& batch, MonoTime deadline) {
  auto sync = Next(deadline);
  if (!sync) return std::unexpected(Lost(batch.may_commit, sync.error().message));
  if (*sync == nullptr || PQresultStatus(sync->get()) != PGRES_PIPELINE_SYNC || PQexitPipelineMode(get()) == 0)
    return std::unexpected(Lost(batch.may_commit, OneLine(PQerrorMessage(get()))));
  return {};
}

Result<std::vector<PgResult>> PgConnection::Pipeline(std::span<const PgStatement> statements, MonoTime deadline) {
  Impl& impl = *impl_;
  failed_statement_ = 0;
  MILLRACE_CHECK(!statements.empty(), "an empty pipeline");
  MILLRACE_TRY(impl.CheckIdle());
  if (impl.clock->Now() >= deadline)
    return Fail(ErrorCode::kTimedOut, "postgres: the deadline passed before anything was sent");
  const bool in_transaction_before = in_transaction();
  const bool begins = IsWord(statements.front().sql, "begin");
  Impl::Batch batch{.statements = statements, .may_commit = !in_transaction_before && !begins};
  batch.results.reserve(statements.size());
  for (const PgStatement& s : statements) batch.may_commit |= IsWord(s.sql, "commit");

  if (impl.prepared.size() > kPreparedMax) {
    impl.prepared.clear();
    if (!in_transaction_before) MILLRACE_TRY(Exec("deallocate all", deadline));
  }
  if (PQenterPipelineMode(impl.get()) == 0)
    return Fail(ErrorCode::kRejected, "postgres: {}", OneLine(PQerrorMessage(impl.get())));
  if (auto r = impl.Send(batch, deadline); !r) return std::unexpected(impl.Lost(batch.may_commit, r.error().message));
  for (std::size_t i = 0; i < statements.size() && !impl.broken; ++i)
    if (auto r = impl.Receive(batch, i, deadline); !r) return std::unexpected(impl.Lost(batch.may_commit, r.error().message));
  failed_statement_ = batch.failed;
  if (impl.broken) {
    if (!batch.error) return std::unexpected(impl.Lost(batch.may_commit, OneLine(PQerrorMessage(impl.get()))));
    return std::unexpected(impl.LastWord(std::move(*batch.error), batch.may_commit));
  }
  MILLRACE_TRY(impl.EndPipeline(batch, deadline));
  if (!batch.error) return std::move(batch.results);
  if (begins && in_transaction()) {
    const std::string kept = impl.state;
    if (auto r = Exec("rollback", deadline); !r) impl.broken = true;
    impl.state = kept;
  }
  return std::unexpected(std::move(*batch.error));
}

Result<PgResult> PgConnection::Query(std::string_view sql, const PgParams& params, MonoTime deadline) {
  const PgStatement statement{sql, params};
  MILLRACE_TRY_ASSIGN(auto results, Pipeline({&statement, 1}, deadline));
  return std::move(results.front());
}

Result<PgResult> PgConnection::QueryOnce(std::string_view sql, const PgParams& params, MonoTime deadline) {
  Impl& impl = *impl_;
  MILLRACE_TRY(impl.CheckIdle());
  if (impl.clock->Now() >= deadline)
    return Fail(ErrorCode::kTimedOut, "postgres: the deadline passed before anything was sent");
  const bool may_commit = !in_transaction() || IsWord(sql, "commit");
  const Bound bound = Impl::Bind(params);
  if (PQsendQueryParams(impl.get(), std::string(sql).c_str(), bound.size(), bound.types.data(), bound.values.data(),
                        bound.lengths.data(), bound.formats.data(), 1) == 0)
    return std::unexpected(impl.Lost(may_commit, OneLine(PQerrorMessage(impl.get()))));
  if (auto r = impl.Flush(deadline); !r) return std::unexpected(impl.Lost(may_commit, r.error().message));
  std::optional<Error> error;
  PgResult answer;
  for (;;) {
    auto next = impl.Next(deadline);
    if (!next) return std::unexpected(impl.Lost(may_commit, next.error().message));
    if (*next == nullptr) break;
    const auto status = PQresultStatus(next->get());
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) {
      if (!error) error = impl.LastWord(impl.ErrorOf(next->get()), may_commit);
      continue;
    }
    auto holder = std::make_unique<PgResult::Impl>();
    holder->result = std::move(*next);
    answer = PgResult(std::move(holder));
  }
  if (error) return std::unexpected(std::move(*error));
  return answer;
}

Result<void> PgConnection::Exec(std::string_view sql, MonoTime deadline) {
  Impl& impl = *impl_;
  MILLRACE_TRY(impl.CheckIdle());
  if (impl.clock->Now() >= deadline)
    return Fail(ErrorCode::kTimedOut, "postgres: the deadline passed before anything was sent");
  const bool may_commit = !in_transaction() || IsWord(sql, "commit");
  if (PQsendQuery(impl.get(), std::string(sql).c_str()) == 0)
    return std::unexpected(impl.Lost(may_commit, OneLine(PQerrorMessage(impl.get()))));
  if (auto r = impl.Flush(deadline); !r) return std::unexpected(impl.Lost(may_commit, r.error().message));
  std::optional<Error> error;
  for (;;) {
    auto next = impl.Next(deadline);
    if (!next) return std::unexpected(impl.Lost(may_commit, next.error().message));
    if (*next == nullptr) break;
    const auto status = PQresultStatus(next->get());
    if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_EMPTY_QUERY || error) continue;
    if (status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH)
      return std::unexpected(impl.Lost(may_commit, "COPY is not for Exec"));
    error = impl.LastWord(impl.ErrorOf(next->get()), may_commit);
  }
  if (error) return std::unexpected(std::move(*error));
  return {};
}

Result<bool> PgConnection::WaitNotification(MonoTime deadline) {
  struct Free {
    void operator()(PGnotify* notify) const noexcept { PQfreemem(notify); }
  };
  Impl& impl = *impl_;
  MILLRACE_TRY(impl.CheckIdle());
  while (true) {
    bool any = false;
    while (const std::unique_ptr<PGnotify, Free> notify{PQnotifies(impl.get())}) any = true;
    if (any) return true;
    if (auto ready = impl.Poll(Impl::Wait::kRead, deadline); !ready) {
      if (ready.error().code == ErrorCode::kTimedOut) return false;
      return std::unexpected(std::move(ready.error()));
    }
    MILLRACE_TRY(impl.CheckIdle());
  }
}

std::string PgIdentifier(std::string_view name) {
  std::string quoted = "\"";
  for (const char c : name) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

std::string PgLiteral(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'') quoted += '\'';
    quoted += c;
  }
  return quoted + "'";
}

}  // namespace millrace
