#include "common/drivers/duckdb_rows.h"

#include <duckdb.h>
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "common/drivers/duckdb_detail.h"

namespace millrace::duck {
namespace {

struct DestroyFunction {
  void operator()(duckdb_table_function function) const noexcept { duckdb_destroy_table_function(&function); }
};

// The engine's, once it has the function.
struct Offered {
  std::shared_ptr<const RowSource> source;
  std::shared_ptr<OfferedRows> tally;
};

// Of one execution. The engine may ask for a column that is none, when all it wants is how many rows there are.
struct Reading {
  std::unique_ptr<RowReading> rows;
  std::vector<idx_t> places;  // in the chunk, of the columns that are read
};

struct Cursor {
  std::unique_ptr<RowCursor> rows;
  std::vector<ColumnFill> columns;
};

template <class T>
void Delete(void* object) {
  delete static_cast<T*>(object);
}

// No exception may cross the engine, which was built by another compiler: one that the report itself throws ends the process.
template <class Work, class Report>
void Guarded(Work work, Report report) noexcept {
  try {
    if (Result<void> done = work(); !done) report(std::move(done.error()));
  } catch (const std::bad_alloc&) {
    report(Error{ErrorCode::kLimit, "no memory left to read rows"});
  } catch (const std::exception& e) {
    report(Error{ErrorCode::kUnavailable, e.what()});
  }
}

void Bind(duckdb_bind_info info) {
  Guarded(
      [&]() -> Result<void> {
        const auto& offered = *static_cast<const Offered*>(duckdb_bind_get_extra_info(info));
        for (const auto& column : offered.source->columns())
          duckdb_bind_add_result_column(info, column.name.c_str(), TypeNamed(column.type).get());
        constexpr bool kExact = false;  // an estimate: what the rows are is said by reading them
        duckdb_bind_set_cardinality(info, static_cast<idx_t>(std::max<std::int64_t>(1, offered.source->rows())), kExact);
        return {};
      },
      [&](const Error& error) { duckdb_bind_set_error(info, error.message.c_str()); });
}

void Init(duckdb_init_info info) {
  const auto& offered = *static_cast<const Offered*>(duckdb_init_get_extra_info(info));
  Guarded(
      [&]() -> Result<void> {
        auto reading = std::make_unique<Reading>();
        std::vector<std::size_t> columns;
        for (idx_t i = 0; i < duckdb_init_get_column_count(info); ++i) {
          const idx_t column = duckdb_init_get_column_index(info, i);
          if (column >= offered.source->columns().size()) continue;
          columns.push_back(column);
          reading->places.push_back(i);
        }
        offered.tally->Forget();
        MILLRACE_TRY_ASSIGN(reading->rows, offered.source->Read(std::move(columns)));
        duckdb_init_set_max_threads(info, static_cast<idx_t>(std::max(1, reading->rows->cursors_max())));
        duckdb_init_set_init_data(info, reading.release(), Delete<Reading>);
        return {};
      },
      [&](Error error) {
        duckdb_init_set_error(info, error.message.c_str());
        offered.tally->Fail(std::move(error));
      });
}

void InitLocal(duckdb_init_info info) {
  Guarded(
      [&]() -> Result<void> {
        duckdb_init_set_init_data(info, new Cursor, Delete<Cursor>);
        return {};
      },
      [&](const Error& error) { duckdb_init_set_error(info, error.message.c_str()); });
}

void Fill(duckdb_function_info info, duckdb_data_chunk chunk) {
  const auto& offered = *static_cast<const Offered*>(duckdb_function_get_extra_info(info));
  Guarded(
      [&]() -> Result<void> {
        auto& reading = *static_cast<Reading*>(duckdb_function_get_init_data(info));
        auto& cursor = *static_cast<Cursor*>(duckdb_function_get_local_init_data(info));
        if (cursor.rows == nullptr) cursor.rows = reading.rows->NewCursor();
        cursor.columns.clear();
        for (const idx_t place : reading.places) {
          duckdb_vector vector = duckdb_data_chunk_get_vector(chunk, place);
          cursor.columns.emplace_back(vector, duckdb_vector_get_data(vector));
        }
        MILLRACE_TRY_ASSIGN(const std::size_t rows, cursor.rows->Fill(cursor.columns, duckdb_vector_size()));
        offered.tally->Count(rows);
        duckdb_data_chunk_set_size(chunk, rows);
        return {};
      },
      [&](Error error) {
        duckdb_function_set_error(info, error.message.c_str());
        offered.tally->Fail(std::move(error));
      });
}

}  // namespace

void ColumnFill::SetLongText(std::size_t row, std::string_view text) {
  duckdb_vector_assign_string_element_len(static_cast<duckdb_vector>(vector_), row, text.data(), text.size());
}

void ColumnFill::MakeValidity() {
  const auto vector = static_cast<duckdb_vector>(vector_);
  duckdb_vector_ensure_validity_writable(vector);
  validity_ = duckdb_vector_get_validity(vector);
}

void OfferedRows::Fail(Error error) {
  const std::lock_guard lock(mutex_);
  errors_.push_back(std::move(error));
}

std::optional<Error> OfferedRows::Behind(std::string_view message) const {
  const std::lock_guard lock(mutex_);
  for (const Error& error : errors_)
    if (message.contains(error.message)) return error;
  return std::nullopt;
}

Result<void> RegisterRows(duckdb_connection connection, const std::string& name, std::shared_ptr<const RowSource> source,
                          std::shared_ptr<OfferedRows> offered) {
  for (const auto& column : source->columns()) {
    if (TypeNamed(column.type) == nullptr)
      return millrace::Fail(ErrorCode::kInvalidArgument, "column '{}': no rows of type {} can be offered", column.name,
                            column.type);
  }
  const std::unique_ptr<std::remove_pointer_t<duckdb_table_function>, DestroyFunction> function(duckdb_create_table_function());
  duckdb_table_function_set_name(function.get(), name.c_str());
  duckdb_table_function_set_extra_info(function.get(), new Offered{std::move(source), std::move(offered)}, Delete<Offered>);
  duckdb_table_function_set_bind(function.get(), Bind);
  duckdb_table_function_set_init(function.get(), Init);
  duckdb_table_function_set_local_init(function.get(), InitLocal);
  duckdb_table_function_set_function(function.get(), Fill);
  duckdb_table_function_supports_projection_pushdown(function.get(), true);
  if (duckdb_register_table_function(connection, function.get()) != DuckDBSuccess)
    return millrace::Fail(ErrorCode::kRejected, "duckdb: the table function {} was refused", name);
  return {};
}

}  // namespace millrace::duck
