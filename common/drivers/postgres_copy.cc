#include "common/drivers/postgres_impl.h"

namespace millrace {

Result<void> PgConnection::StartCopyIn(std::string_view sql, MonoTime deadline) {
  Impl& impl = *impl_;
  MILLRACE_TRY(impl.CheckIdle());
  if (impl.clock->Now() >= deadline)
    return Fail(ErrorCode::kTimedOut, "postgres: the deadline passed before anything was sent");
  if (PQsendQuery(impl.get(), std::string(sql).c_str()) == 0)
    return std::unexpected(impl.Lost(false, PQerrorMessage(impl.get())));
  if (auto r = impl.Flush(deadline); !r) return std::unexpected(impl.Lost(false, r.error().message));
  auto first = impl.Next(deadline);
  if (!first) return std::unexpected(impl.Lost(false, first.error().message));
  if (*first != nullptr && PQresultStatus(first->get()) == PGRES_COPY_IN) return {};
  std::optional<Error> error;
  if (*first != nullptr && PQresultStatus(first->get()) == PGRES_FATAL_ERROR) error = impl.ErrorOf(first->get());
  for (;;) {
    auto next = impl.Next(deadline);
    if (!next) return std::unexpected(impl.Lost(false, next.error().message));
    if (*next == nullptr) break;
  }
  if (error) return std::unexpected(std::move(*error));
  return Fail(ErrorCode::kInvalidArgument, "postgres: not a COPY ... FROM STDIN: {}", sql);
}

Result<void> PgConnection::PutCopyData(std::span<const char> data, MonoTime deadline) {
  Impl& impl = *impl_;
  constexpr std::size_t kChunk = 1u << 20;  // libpq grows its buffer to what it is given at once
  while (!data.empty()) {
    const auto part = data.first(std::min(kChunk, data.size()));
    const int taken = PQputCopyData(impl.get(), part.data(), static_cast<int>(part.size()));
    if (taken < 0) return std::unexpected(impl.Lost(false, PQerrorMessage(impl.get())));
    if (taken == 1) data = data.subspan(part.size());
    if (auto r = impl.Flush(deadline); !r) return std::unexpected(impl.Lost(false, r.error().message));
  }
  return {};
}

Result<std::int64_t> PgConnection::EndCopy(MonoTime deadline) {
  Impl& impl = *impl_;
  // During a COPY libpq no longer says whether a transaction was open before it; a lost answer is the careful one.
  constexpr bool may_commit = true;
  for (int done = 0; done != 1;) {
    done = PQputCopyEnd(impl.get(), nullptr);
    if (done < 0) return std::unexpected(impl.Lost(may_commit, PQerrorMessage(impl.get())));
    if (auto r = impl.Flush(deadline); !r) return std::unexpected(impl.Lost(may_commit, r.error().message));
  }
  std::optional<Error> error;
  std::int64_t rows = 0;
  for (;;) {
    auto next = impl.Next(deadline);
    if (!next) return std::unexpected(impl.Lost(true, next.error().message));
    if (*next == nullptr) break;
    if (PQresultStatus(next->get()) == PGRES_COMMAND_OK)
      rows = std::strtoll(PQcmdTuples(next->get()), nullptr, 10);
    else if (!error)
      error = impl.LastWord(impl.ErrorOf(next->get()), true);
  }
  if (error) return std::unexpected(std::move(*error));
  return rows;
}

Result<void> PgConnection::AbortCopy(std::string_view reason, MonoTime deadline) {
  Impl& impl = *impl_;
  for (int done = 0; done != 1;) {
    done = PQputCopyEnd(impl.get(), std::string(reason).c_str());
    if (done < 0) return std::unexpected(impl.Lost(false, PQerrorMessage(impl.get())));
    if (auto r = impl.Flush(deadline); !r) return std::unexpected(impl.Lost(false, r.error().message));
  }
  for (;;) {
    auto next = impl.Next(deadline);
    if (!next) return std::unexpected(impl.Lost(false, next.error().message));
    if (*next == nullptr) return {};
  }
}

}  // namespace millrace
