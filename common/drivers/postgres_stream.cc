#include "common/drivers/postgres_impl.h"

// Answers that are too large to be held: libpq hands them over row by row.

namespace millrace {

Result<void> PgConnection::Stream(const std::string& sql, const PgParams& params,
                                  const std::function<Result<void>(PgResult)>& visit, MonoTime deadline) {
  Impl& impl = *impl_;
  MILLRACE_TRY(impl.CheckIdle());
  if (impl.clock->Now() >= deadline)
    return Fail(ErrorCode::kTimedOut, "postgres: the deadline passed before anything was sent");
  const Bound bound = Impl::Bind(params);
  const auto lost = [&](std::string_view what) { return std::unexpected(impl.Lost(false, what)); };
  // As a pipeline of one: outside of pipelines libpq forgets to end the mode before the first statement of the next pipeline.
  if (PQenterPipelineMode(impl.get()) == 0 ||
      PQsendQueryParams(impl.get(), sql.c_str(), bound.size(), bound.types.data(), bound.values.data(), bound.lengths.data(),
                        bound.formats.data(), 1) == 0 ||
      PQpipelineSync(impl.get()) == 0 || PQsetSingleRowMode(impl.get()) == 0)
    return lost(PQerrorMessage(impl.get()));
  if (auto r = impl.Flush(deadline); !r) return lost(r.error().message);
  std::optional<Error> error;
  for (;;) {
    auto next = impl.Next(deadline);
    if (!next) return lost(next.error().message);
    if (*next == nullptr) break;
    const auto status = PQresultStatus(next->get());
    if (status == PGRES_TUPLES_OK || error) continue;  // the end; after an error the rest only has to be taken
    if (status != PGRES_SINGLE_TUPLE) {
      error = impl.ErrorOf(next->get());
      if (error->code == ErrorCode::kMaybeApplied) error->code = ErrorCode::kUnavailable;  // it only reads
      continue;
    }
    auto holder = std::make_unique<PgResult::Impl>();
    holder->result = std::move(*next);
    if (auto visited = visit(PgResult(std::move(holder))); !visited) error = std::move(visited.error());
  }
  if (!impl.broken) MILLRACE_TRY(impl.EndPipeline({.statements = {}}, deadline));
  if (error) return std::unexpected(std::move(*error));
  return {};
}

}  // namespace millrace
