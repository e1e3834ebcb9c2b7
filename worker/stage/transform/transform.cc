#include "worker/stage/transform/transform.h"

#include <fmt/format.h>

#include "worker/stage/input_sql.h"
#include "worker/stage/lake_writer.h"

namespace millrace {

StageOutcome<StageResult> RunTransform(const StageOrder& order, const std::vector<Manifest>& inputs,
                                       duck::Connection& connection) {
  const auto& spec = std::get<TransformSpec>(order.task.stage.work);
  StageResult result;
  const auto watch = SourceWatch::Start(inputs);
  if (!watch) return std::unexpected(StageFailure("source_changed", watch.error().message));
  for (const auto& input : inputs) {
    if (auto same = VerifySources(input); !same) return std::unexpected(StageFailure("source_changed", same.error().message));
    MILLRACE_TRY(VerifyLake(input, order.lake));
    MILLRACE_TRY_ASSIGN(const std::string sql, OfferInput(connection, input, order.lake));
    auto made = connection.Execute(fmt::format("CREATE TEMP VIEW {} AS {}", duck::QuoteName(input.stage), sql));
    if (!made) return std::unexpected(SqlFailure("unreachable_input", connection, std::move(made.error())));
    result.input_rows += input.rows.loaded;
    for (const auto& file : input.files) result.bytes_read += file.bytes;
  }
  LakeWriter writer(order, connection);
  writer.BeforePublish(&*watch);
  auto done = writer.WriteAndPublish(spec.sql, order.task.params, "silver", std::move(result));
  if (!done && done.error().error_class == "io_error") {
    // A source that was replaced while it was read looks like a broken file; say what it is.
    for (const auto& input : inputs) {
      if (auto same = VerifySources(input); !same) return std::unexpected(StageFailure("source_changed", same.error().message));
    }
  }
  return done;
}

}  // namespace millrace
