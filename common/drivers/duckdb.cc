#include "common/drivers/duckdb.h"

#include <duckdb.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <utility>

#include "common/drivers/duckdb_detail.h"

namespace millrace::duck {
namespace {

static_assert(sizeof(duckdb_string_t) == 16);
static_assert(sizeof(Int128) == sizeof(duckdb_hugeint));
static_assert(sizeof(Interval) == sizeof(duckdb_interval));

struct CloseDatabase {
  void operator()(duckdb_database db) const noexcept { duckdb_close(&db); }
};
struct Disconnect {
  void operator()(duckdb_connection c) const noexcept { duckdb_disconnect(&c); }
};
struct DestroyPrepared {
  void operator()(duckdb_prepared_statement s) const noexcept { duckdb_destroy_prepare(&s); }
};
struct DestroyExtracted {
  void operator()(duckdb_extracted_statements s) const noexcept { duckdb_destroy_extracted(&s); }
};
struct DestroyChunk {
  void operator()(duckdb_data_chunk c) const noexcept { duckdb_destroy_data_chunk(&c); }
};
struct DestroyConfig {
  void operator()(duckdb_config c) const noexcept { duckdb_destroy_config(&c); }
};
struct FreeText {
  void operator()(char* t) const noexcept { duckdb_free(t); }
};
template <class Handle, class Deleter>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Deleter>;
using Prepared = Owned<duckdb_prepared_statement, DestroyPrepared>;
using Extracted = Owned<duckdb_extracted_statements, DestroyExtracted>;

struct ResultHolder {
  duckdb_result result{};
  ResultHolder() = default;
  ResultHolder(const ResultHolder&) = delete;
  ResultHolder& operator=(const ResultHolder&) = delete;
  ~ResultHolder() { duckdb_destroy_result(&result); }
};

}  // namespace

std::array<std::uint8_t, 16> UuidBytes(Int128 stored) {
  std::array<std::uint8_t, 16> bytes{};
  const std::uint64_t upper = static_cast<std::uint64_t>(stored.upper) ^ (std::uint64_t{1} << 63);
  for (std::size_t i = 0; i < 8; ++i) {
    bytes[i] = static_cast<std::uint8_t>(upper >> (56 - 8 * i));
    bytes[8 + i] = static_cast<std::uint8_t>(stored.lower >> (56 - 8 * i));
  }
  return bytes;
}

std::int64_t Table::Int(std::size_t column, std::size_t row) const {
  if (row >= rows.size() || column >= rows[row].size() || !rows[row][column]) return 0;
  const std::string& text = *rows[row][column];
  std::int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

std::string Table::Text(std::size_t column, std::size_t row) const {
  if (row >= rows.size() || column >= rows[row].size()) return {};
  return rows[row][column].value_or("");
}

namespace {
std::string Quoted(std::string_view text, char quote) {
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote) out += quote;
    out += c;
  }
  out += quote;
  return out;
}
}  // namespace

std::string QuoteName(std::string_view name) { return Quoted(name, '"'); }
std::string QuoteText(std::string_view text) { return Quoted(text, '\''); }

struct Database::State {
  Owned<duckdb_database, CloseDatabase> handle;
};

Database::Database(std::shared_ptr<State> state) : state_(std::move(state)) {}
Database::Database(Database&&) noexcept = default;
Database& Database::operator=(Database&&) noexcept = default;
Database::~Database() = default;

Result<Database> Database::Open(const DatabaseOptions& options) {
  duckdb_config raw_config = nullptr;
  if (duckdb_create_config(&raw_config) != DuckDBSuccess) return Fail(ErrorCode::kLimit, "duckdb: no memory for its settings");
  const Owned<duckdb_config, DestroyConfig> config(raw_config);
  std::vector<std::pair<std::string, std::string>> settings = {
      {"threads", fmt::format("{}", std::max(1, options.threads))},
      {"autoinstall_known_extensions", "false"},
      {"autoload_known_extensions", "false"},
      {"allow_community_extensions", "false"},
      {"allow_persistent_secrets", "false"},
      {"temp_directory", options.temp_directory},
  };
  if (options.memory_bytes_max > 0) settings.emplace_back("memory_limit", fmt::format("{}B", options.memory_bytes_max));
  for (const auto& [name, value] : settings) {
    if (duckdb_set_config(config.get(), name.c_str(), value.c_str()) != DuckDBSuccess) {
      return Fail(ErrorCode::kInvalidArgument, "duckdb: setting {} = '{}' was refused", name, value);
    }
  }
  duckdb_database handle = nullptr;
  char* raw_error = nullptr;
  if (duckdb_open_ext(nullptr, &handle, config.get(), &raw_error) != DuckDBSuccess) {
    const std::unique_ptr<char, FreeText> error(raw_error);
    return Fail(ErrorCode::kUnavailable, "duckdb: cannot open a database in memory: {}",
                error ? error.get() : "no reason given");
  }
  auto state = std::make_shared<State>();
  state->handle.reset(handle);
  return Database(std::move(state));
}

struct Connection::State {
  std::shared_ptr<void> database;  // outlives its connections
  Owned<duckdb_connection, Disconnect> handle;
  SqlError error;
  std::shared_ptr<OfferedRows> offered = std::make_shared<OfferedRows>();

  std::unexpected<Error> Failed(const char* raw) {
    error = ParseSqlError(raw == nullptr ? "unknown error" : raw);
    if (const auto reading = offered->Behind(error.message)) {
      const char* type = reading->code == ErrorCode::kLimit ? "Out of Memory" : "IO";
      error = {.type = type, .message = reading->message, .position = {}, .candidates = {}};
    }
    return std::unexpected(Error{CodeOf(error.type), fmt::format("{}: {}", error.type, error.message)});
  }
  Result<Extracted> Extract(std::string_view sql, std::size_t* count);
  Result<Prepared> Prepare(std::string_view sql);
  Result<Prepared> PrepareOne(duckdb_extracted_statements statements, std::size_t index);
  Result<Prepared> PrepareSelect(std::string_view sql);
  Result<void> Bind(duckdb_prepared_statement statement, const std::vector<BoundParam>& params);
  Result<void> BindOne(duckdb_prepared_statement statement, idx_t index, const BoundParam& param);
  Result<void> BindDate(duckdb_prepared_statement statement, idx_t index, const BoundParam& param);
};

Result<Connection> Database::Connect() {
  duckdb_connection handle = nullptr;
  if (duckdb_connect(state_->handle.get(), &handle) != DuckDBSuccess) {
    return Fail(ErrorCode::kUnavailable, "duckdb: cannot open a connection");
  }
  auto state = std::make_unique<Connection::State>();
  state->database = state_;
  state->handle.reset(handle);
  Connection connection(std::move(state));
  MILLRACE_TRY(
      connection.Execute("SET errors_as_json = true; SET enable_progress_bar = true; SET enable_progress_bar_print = false"));
  return connection;
}

Connection::Connection(std::unique_ptr<State> state) : state_(std::move(state)) {}
Connection::Connection(Connection&&) noexcept = default;
Connection& Connection::operator=(Connection&&) noexcept = default;
Connection::~Connection() = default;

void Connection::Interrupt() { duckdb_interrupt(state_->handle.get()); }
const SqlError& Connection::last_error() const { return state_->error; }

std::int64_t Connection::RowsProcessed() const {
  const duckdb_query_progress_type progress = duckdb_query_progress(state_->handle.get());
  const std::int64_t own = state_->offered->rows();  // of these the engine knows nothing
  if (progress.percentage < 0) return own > 0 ? own : -1;
  return std::max(own, static_cast<std::int64_t>(progress.rows_processed));
}

Result<std::string> Connection::Offer(std::shared_ptr<const RowSource> source) {
  static std::atomic<std::uint64_t> offered = 0;  // a name is the database's, of whose connections there may be many
  const std::string name = fmt::format("millrace_rows_{}", offered++);
  MILLRACE_TRY(RegisterRows(state_->handle.get(), name, std::move(source), state_->offered));
  return name + "()";
}

Result<Extracted> Connection::State::Extract(std::string_view sql, std::size_t* count) {
  const std::string text(sql);
  duckdb_extracted_statements raw = nullptr;
  *count = duckdb_extract_statements(handle.get(), text.c_str(), &raw);
  Extracted statements(raw);
  if (*count == 0) {
    const char* why = statements ? duckdb_extract_statements_error(statements.get()) : nullptr;
    if (why != nullptr && *why != '\0') return Failed(why);
    return Failed("Parser Error: there is no statement");
  }
  return statements;
}

Result<Prepared> Connection::State::PrepareOne(duckdb_extracted_statements statements, std::size_t index) {
  duckdb_prepared_statement raw = nullptr;
  const auto state = duckdb_prepare_extracted_statement(handle.get(), statements, index, &raw);
  Prepared prepared(raw);
  if (state != DuckDBSuccess) return Failed(duckdb_prepare_error(prepared.get()));
  return prepared;
}

Result<Prepared> Connection::State::Prepare(std::string_view sql) {
  std::size_t count = 0;
  MILLRACE_TRY_ASSIGN(const Extracted statements, Extract(sql, &count));
  if (count != 1) return Failed("Parser Error: expected one statement, got several");
  return PrepareOne(statements.get(), 0);
}

Result<void> Connection::State::BindDate(duckdb_prepared_statement statement, idx_t index, const BoundParam& param) {
  MILLRACE_TRY_ASSIGN(const Prepared cast, Prepare(fmt::format("SELECT CAST($1 AS {})", param.type)));
  ResultHolder holder;
  if (duckdb_bind_varchar_length(cast.get(), 1, param.value.data(), param.value.size()) != DuckDBSuccess ||
      duckdb_execute_prepared(cast.get(), &holder.result) != DuckDBSuccess) {
    return Fail(ErrorCode::kInvalidArgument, "parameter '{}': '{}' is not a {}", param.name, param.value, param.type);
  }
  const Owned<duckdb_data_chunk, DestroyChunk> chunk(duckdb_fetch_chunk(holder.result));
  const void* data = duckdb_vector_get_data(duckdb_data_chunk_get_vector(chunk.get(), 0));
  duckdb_state bound = DuckDBError;
  switch (duckdb_column_type(&holder.result, 0)) {
    case DUCKDB_TYPE_DATE: bound = duckdb_bind_date(statement, index, *static_cast<const duckdb_date*>(data)); break;
    case DUCKDB_TYPE_TIMESTAMP:
      bound = duckdb_bind_timestamp(statement, index, *static_cast<const duckdb_timestamp*>(data));
      break;
    case DUCKDB_TYPE_TIMESTAMP_TZ:
      bound = duckdb_bind_timestamp_tz(statement, index, *static_cast<const duckdb_timestamp*>(data));
      break;
    default: return Fail(ErrorCode::kInvalidArgument, "parameter '{}': type '{}' is not supported", param.name, param.type);
  }
  if (bound != DuckDBSuccess) return Fail(ErrorCode::kInvalidArgument, "parameter '{}' cannot be bound", param.name);
  return {};
}

Result<void> Connection::State::BindOne(duckdb_prepared_statement statement, idx_t index, const BoundParam& param) {
  const auto wrong = [&] {
    return Fail(ErrorCode::kInvalidArgument, "parameter '{}': '{}' is not a {}", param.name, param.value, param.type);
  };
  const char* begin = param.value.data();
  const char* end = begin + param.value.size();
  duckdb_state bound = DuckDBError;
  if (param.type == "text" || param.type == "varchar") {
    bound = duckdb_bind_varchar_length(statement, index, begin, param.value.size());
  } else if (param.type == "bigint") {
    std::int64_t value = 0;
    const auto [stop, code] = std::from_chars(begin, end, value);
    if (code != std::errc{} || stop != end) return wrong();
    bound = duckdb_bind_int64(statement, index, value);
  } else if (param.type == "double") {
    double value = 0;
    const auto [stop, code] = std::from_chars(begin, end, value);
    if (code != std::errc{} || stop != end) return wrong();
    bound = duckdb_bind_double(statement, index, value);
  } else if (param.type == "boolean") {
    if (param.value != "true" && param.value != "false") return wrong();
    bound = duckdb_bind_boolean(statement, index, param.value == "true");
  } else {
    return BindDate(statement, index, param);
  }
  if (bound != DuckDBSuccess) return Fail(ErrorCode::kInvalidArgument, "parameter '{}' cannot be bound", param.name);
  return {};
}

Result<void> Connection::State::Bind(duckdb_prepared_statement statement, const std::vector<BoundParam>& params) {
  const idx_t count = duckdb_nparams(statement);
  for (idx_t i = 1; i <= count; ++i) {
    const std::unique_ptr<char, FreeText> name(const_cast<char*>(duckdb_parameter_name(statement, i)));
    const std::string_view wanted = name ? name.get() : "";
    // The parser folds parameter names to lower case.
    const auto same = [&](const BoundParam& p) {
      return p.name.size() == wanted.size() &&
             std::equal(p.name.begin(), p.name.end(), wanted.begin(), [](char a, char b) { return (a | 0x20) == (b | 0x20); });
    };
    const auto found = std::find_if(params.begin(), params.end(), same);
    if (found == params.end()) {
      error = {.type = "Binder",
               .message = fmt::format("parameter '${}' is not declared", wanted),
               .position = {},
               .candidates = {}};
      return Fail(ErrorCode::kInvalidArgument, "{}", error.message);
    }
    MILLRACE_TRY(BindOne(statement, i, *found));
  }
  return {};
}

Result<void> Connection::Configure(const DatabaseOptions& options) {
  std::string sql = fmt::format("SET threads = {}; SET temp_directory = {}; SET preserve_insertion_order = false",
                                std::max(1, options.threads), QuoteText(options.temp_directory));
  if (options.memory_bytes_max > 0) sql += fmt::format("; SET memory_limit = '{}B'", options.memory_bytes_max);
  MILLRACE_TRY(Execute(sql));
  return {};
}

Result<void> Connection::Restrict(const std::vector<std::string>& paths, const std::vector<std::string>& directories) {
  const auto list = [](const std::vector<std::string>& items) {
    std::string out = "[";
    for (const auto& item : items) out += (out.size() > 1 ? ", " : "") + QuoteText(item);
    return out + "]";
  };
  MILLRACE_TRY(
      Execute(fmt::format("SET allowed_paths = {}; SET allowed_directories = {}; SET enable_external_access = false; "
                          "SET lock_configuration = true",
                          list(paths), list(directories))));
  return {};
}

Result<std::int64_t> Connection::Execute(std::string_view sql, const std::vector<BoundParam>& params) {
  std::size_t count = 0;
  MILLRACE_TRY_ASSIGN(const Extracted statements, state_->Extract(sql, &count));
  std::int64_t changed = 0;
  for (std::size_t i = 0; i < count; ++i) {
    MILLRACE_TRY_ASSIGN(const Prepared prepared, state_->PrepareOne(statements.get(), i));
    if (!params.empty() || duckdb_nparams(prepared.get()) > 0) MILLRACE_TRY(state_->Bind(prepared.get(), params));
    ResultHolder holder;
    if (duckdb_execute_prepared(prepared.get(), &holder.result) != DuckDBSuccess) {
      return state_->Failed(duckdb_result_error(&holder.result));
    }
    changed = static_cast<std::int64_t>(duckdb_rows_changed(&holder.result));
  }
  return changed;
}

Result<Table> Connection::Query(std::string_view sql, const std::vector<BoundParam>& params) {
  MILLRACE_TRY_ASSIGN(const Prepared prepared, state_->Prepare(sql));
  MILLRACE_TRY(state_->Bind(prepared.get(), params));
  ResultHolder holder;
  if (duckdb_execute_prepared(prepared.get(), &holder.result) != DuckDBSuccess) {
    return state_->Failed(duckdb_result_error(&holder.result));
  }
  Table table;
  const idx_t columns = duckdb_column_count(&holder.result);
  const idx_t rows = duckdb_row_count(&holder.result);
  for (idx_t c = 0; c < columns; ++c) table.columns.emplace_back(duckdb_column_name(&holder.result, c));
  table.rows.resize(rows);
  for (idx_t r = 0; r < rows; ++r) {
    for (idx_t c = 0; c < columns; ++c) {
      if (duckdb_value_is_null(&holder.result, c, r)) {
        table.rows[r].emplace_back(std::nullopt);
        continue;
      }
      const duckdb_string text = duckdb_value_string(&holder.result, c, r);
      const std::unique_ptr<char, FreeText> owned(text.data);
      table.rows[r].emplace_back(std::string(text.data == nullptr ? "" : text.data, text.data == nullptr ? 0 : text.size));
    }
  }
  return table;
}

Result<std::vector<ColumnSpec>> Connection::Describe(std::string_view sql, const std::vector<BoundParam>& params) {
  MILLRACE_TRY_ASSIGN(const Prepared prepared, state_->PrepareSelect(sql));
  MILLRACE_TRY(state_->Bind(prepared.get(), params));
  std::vector<ColumnSpec> columns;
  idx_t count = duckdb_prepared_statement_column_count(prepared.get());
  for (idx_t c = 0; c < count; ++c) {
    const LogicalType type(duckdb_prepared_statement_column_logical_type(prepared.get(), c));
    const std::unique_ptr<char, FreeText> name(const_cast<char*>(duckdb_prepared_statement_column_name(prepared.get(), c)));
    columns.push_back({.name = name ? name.get() : "", .type = TypeName(type.get()), .not_null = false});
  }
  if (std::any_of(columns.begin(), columns.end(), [](const ColumnSpec& c) { return c.type == "unknown"; }) || count == 0) {
    // Types that depend on a parameter are known only once it is bound: ask for a result of no rows.
    MILLRACE_TRY_ASSIGN(const RowStream stream,
                        Stream(fmt::format("SELECT * FROM ({}\n) LIMIT 0", StripSemicolon(sql)), params));
    columns.clear();
    for (const auto& c : stream.columns()) columns.push_back({.name = c.name, .type = c.sql_type, .not_null = false});
  }
  return columns;
}

Result<Prepared> Connection::State::PrepareSelect(std::string_view sql) {
  std::size_t count = 0;
  MILLRACE_TRY_ASSIGN(const Extracted statements, Extract(sql, &count));
  if (count != 1) return Failed("Parser Error: expected one SELECT, got several statements");
  // The text is later put inside parentheses: prepared alone first, so that it cannot close them.
  MILLRACE_TRY_ASSIGN(Prepared prepared, PrepareOne(statements.get(), 0));
  if (duckdb_prepared_statement_type(prepared.get()) != DUCKDB_STATEMENT_TYPE_SELECT) {
    return Failed("Parser Error: only a SELECT is allowed here");
  }
  return prepared;
}

struct RowStream::State {
  Prepared prepared;
  ResultHolder holder;
  Owned<duckdb_data_chunk, DestroyChunk> chunk;
  std::size_t rows = 0;
  std::vector<ColumnType> columns;
  Connection::State* connection = nullptr;
};

RowStream::RowStream(std::unique_ptr<State> state) : state_(std::move(state)) {}
RowStream::RowStream(RowStream&&) noexcept = default;
RowStream& RowStream::operator=(RowStream&&) noexcept = default;
RowStream::~RowStream() = default;

const std::vector<ColumnType>& RowStream::columns() const { return state_->columns; }

Result<std::size_t> RowStream::Next() {
  state_->rows = 0;
  state_->chunk.reset(duckdb_fetch_chunk(state_->holder.result));
  if (state_->chunk == nullptr) {
    const char* error = duckdb_result_error(&state_->holder.result);
    if (error != nullptr && *error != '\0') return state_->connection->Failed(error);
    return std::size_t{0};
  }
  state_->rows = duckdb_data_chunk_get_size(state_->chunk.get());
  return state_->rows;
}

ChunkColumn RowStream::Column(std::size_t index) const {
  const duckdb_vector vector = duckdb_data_chunk_get_vector(state_->chunk.get(), index);
  return {duckdb_vector_get_data(vector), duckdb_vector_get_validity(vector), state_->rows};
}

namespace {

// The SELECT list entries that turn columns without a C++ form into text; empty when every column has one.
std::string CastsToText(const std::vector<ColumnType>& columns) {
  std::string casts;
  for (const auto& column : columns) {
    if (!column.rendered) continue;
    const std::string quoted = QuoteName(column.name);
    casts += fmt::format("{}CAST({} AS VARCHAR) AS {}", casts.empty() ? "" : ", ", quoted, quoted);
  }
  return casts;
}

std::vector<ColumnType> ResultColumns(duckdb_result* result) {
  std::vector<ColumnType> columns;
  const idx_t count = duckdb_column_count(result);
  for (idx_t c = 0; c < count; ++c) {
    const LogicalType type(duckdb_column_logical_type(result, c));
    columns.push_back(DescribeColumn(duckdb_column_name(result, c), type.get()));
  }
  return columns;
}

}  // namespace

Result<RowStream> Connection::Stream(std::string_view sql, const std::vector<BoundParam>& params) {
  std::string text(sql);
  std::vector<ColumnType> declared;
  while (true) {  // a second time only with casts to text in place
    auto state = std::make_unique<RowStream::State>();
    state->connection = state_.get();
    MILLRACE_TRY_ASSIGN(state->prepared, state_->Prepare(text));
    MILLRACE_TRY(state_->Bind(state->prepared.get(), params));
    if (duckdb_execute_prepared_streaming(state->prepared.get(), &state->holder.result) != DuckDBSuccess) {
      return state_->Failed(duckdb_result_error(&state->holder.result));
    }
    state->columns = ResultColumns(&state->holder.result);
    if (declared.empty()) {
      if (const std::string casts = CastsToText(state->columns); !casts.empty()) {
        declared = std::move(state->columns);
        text = fmt::format("SELECT * REPLACE ({}) FROM ({}\n)", casts, StripSemicolon(sql));
        continue;
      }
    } else {
      for (std::size_t c = 0; c < declared.size() && c < state->columns.size(); ++c) {
        if (declared[c].rendered) state->columns[c] = declared[c];
      }
    }
    return RowStream(std::move(state));
  }
}

}  // namespace millrace::duck
