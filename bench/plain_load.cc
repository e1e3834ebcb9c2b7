// The load of `millrace bench load --mode replace` without Millrace: one process in which the engine reads the CSV file and
// runs the same SQL, and several connections send the rows as binary COPY into a new logged table. Its reading of the file, its
// encoder and its connections are its own (nothing of Millrace is linked); `bench load --prototype` runs it beside ours.
//   millrace_plain_load CSV CONNINFO TABLE [CONNECTIONS] [THREADS]     both 2 unless said
// Prints one JSON object. It does none of: digest of its input, proof of the declared types, checks, fence, receipt, statistics
// of the new table, the swap with the old one, history, confinement; and each connection commits by itself.
#include <duckdb.h>
#include <endian.h>
#include <fmt/format.h>
#include <libpq-fe.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kColumns = 10, kBufferBytes = 1u << 20, kRowBytesMax = 4096, kTextBytesMax = 1024, kChunksWaitingMax = 64;
constexpr std::int64_t kEpochMicros = 946'684'800'000'000;  // 2000-01-01
constexpr std::int32_t kEpochDays = 10'957;

[[noreturn]] void Stop(const std::string& why) { throw std::runtime_error(why); }

// ---- the binary form

class Encoder {
 public:
  void Header() { Raw(std::string_view("PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0", 19)); }
  void Int16(std::int16_t v) { Put(htobe16(static_cast<std::uint16_t>(v))); }
  void Int32(std::int32_t v) { Put(htobe32(static_cast<std::uint32_t>(v))); }
  void Int64(std::int64_t v) { Put(htobe64(static_cast<std::uint64_t>(v))); }
  void Text(std::string_view v) {
    if (v.size() > kTextBytesMax) Stop("a text is longer than the sample file has");
    Int32(static_cast<std::int32_t>(v.size()));
    Raw(v);
  }
  // Digits of base 10,000 around the point. REQUIRES: |unscaled| < 10^15.
  void Numeric(std::int64_t unscaled, int scale) {
    const int pad = (4 - scale % 4) % 4;
    std::uint64_t rest = static_cast<std::uint64_t>(unscaled < 0 ? -unscaled : unscaled);
    for (int i = 0; i < pad; ++i) rest *= 10;
    std::array<std::int16_t, 6> digits{};
    int count = 0, low = 0;
    for (; rest != 0; rest /= 10'000) digits[static_cast<std::size_t>(count++)] = static_cast<std::int16_t>(rest % 10'000);
    const int weight = count - (scale + pad) / 4 - 1;
    while (low < count && digits[static_cast<std::size_t>(low)] == 0) ++low;
    Int32(8 + 2 * (count - low));
    Int16(static_cast<std::int16_t>(count - low));
    Int16(static_cast<std::int16_t>(count == low ? 0 : weight));
    Int16(unscaled < 0 ? 0x4000 : 0);
    Int16(static_cast<std::int16_t>(scale));
    for (int i = count; i > low; --i) Int16(digits[static_cast<std::size_t>(i - 1)]);
  }
  bool Full() const { return size_ + kRowBytesMax > kBufferBytes; }
  void SendTo(PGconn* connection) {
    if (PQputCopyData(connection, bytes_.get(), static_cast<int>(size_)) != 1) Stop(PQerrorMessage(connection));
    size_ = 0;
  }

 private:
  template <class T>
  void Put(T v) {
    std::memcpy(bytes_.get() + size_, &v, sizeof v);
    size_ += sizeof v;
  }
  void Raw(std::string_view v) {
    std::memcpy(bytes_.get() + size_, v.data(), v.size());
    size_ += v.size();
  }
  std::unique_ptr<char[]> bytes_ = std::make_unique<char[]>(kBufferBytes);
  std::size_t size_ = 0;
};

struct Chunk {
  explicit Chunk(duckdb_data_chunk taken) : handle(taken) {}
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;
  ~Chunk() { duckdb_destroy_data_chunk(&handle); }
  duckdb_data_chunk handle;
};

struct Column {
  void* data = nullptr;
  std::uint64_t* valid = nullptr;
  template <class T>
  T At(std::size_t row) const {
    return static_cast<const T*>(data)[row];
  }
};

// In the order of the file's columns, see Clean.
void Encode(const Chunk& chunk, Encoder& out, PGconn* connection) {
  std::array<Column, kColumns> columns;
  for (std::size_t i = 0; i < kColumns; ++i) {
    const duckdb_vector vector = duckdb_data_chunk_get_vector(chunk.handle, i);
    columns[i] = {duckdb_vector_get_data(vector), duckdb_vector_get_validity(vector)};
  }
  const std::size_t rows = duckdb_data_chunk_get_size(chunk.handle);
  for (std::size_t row = 0; row < rows; ++row) {
    if (out.Full()) out.SendTo(connection);
    out.Int16(kColumns);
    for (std::size_t i = 0; i < kColumns; ++i) {
      const Column& c = columns[i];
      if (c.valid != nullptr && !duckdb_validity_row_is_valid(c.valid, row)) {
        out.Int32(-1);
        continue;
      }
      switch (i) {
        case 0: out.Int32(8), out.Int64(c.At<std::int64_t>(row)); break;
        case 1: out.Int32(4), out.Int32(c.At<std::int32_t>(row)); break;
        case 2: out.Int32(8), out.Int64(c.At<std::int64_t>(row) - kEpochMicros); break;
        case 3: out.Int32(4), out.Int32(c.At<std::int32_t>(row) - kEpochDays); break;
        case 4: out.Int32(2), out.Int16(c.At<std::int16_t>(row)); break;
        case 5: out.Numeric(c.At<std::int64_t>(row), 2); break;
        case 6: out.Numeric(c.At<std::int32_t>(row), 4); break;
        default: {
          auto* text = static_cast<duckdb_string_t*>(c.data) + row;
          out.Text({duckdb_string_t_data(text), duckdb_string_t_length(*text)});
        }
      }
    }
  }
}

// ---- connections

class Connection {
 public:
  explicit Connection(const char* conninfo) : handle_(PQconnectdb(conninfo)) {
    if (PQstatus(handle_) != CONNECTION_OK) Stop(PQerrorMessage(handle_));
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() { PQfinish(handle_); }
  PGconn* get() const { return handle_; }
  void Run(const std::string& sql, ExecStatusType expected) { Expect(PQexec(handle_, sql.c_str()), expected); }
  void EndCopy() {
    if (PQputCopyEnd(handle_, nullptr) != 1) Stop(PQerrorMessage(handle_));
    Expect(PQgetResult(handle_), PGRES_COMMAND_OK);
  }

 private:
  void Expect(PGresult* result, ExecStatusType expected) {
    const bool as_expected = PQresultStatus(result) == expected;
    PQclear(result);
    if (!as_expected) Stop(PQerrorMessage(handle_));
  }
  PGconn* handle_;
};

// Chunks from the engine to whichever sender is free.
class Queue {
 public:
  // False: a sender failed, nobody takes them any more.
  bool Put(std::unique_ptr<Chunk> chunk) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_.size() < kChunksWaitingMax || !failure_.empty(); });
    if (!failure_.empty()) return false;
    waiting_.push_back(std::move(chunk));
    lock.unlock();
    changed_.notify_all();
    return true;
  }
  // Null: there are no more.
  std::unique_ptr<Chunk> Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !waiting_.empty() || ended_; });
    if (waiting_.empty()) return nullptr;
    auto chunk = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    changed_.notify_all();
    return chunk;
  }
  void End(const std::string& failure) {
    {
      const std::scoped_lock lock(mutex_);
      ended_ = true;
      if (failure_.empty()) failure_ = failure;
    }
    changed_.notify_all();
  }
  const std::string& failure() const { return failure_; }  // REQUIRES: all threads that use it have ended

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Chunk>> waiting_;
  bool ended_ = false;
  std::string failure_;
};

void Send(const char* conninfo, const std::string& table, Queue& queue) try {
  Connection connection(conninfo);
  connection.Run("copy " + table + " from stdin (format binary)", PGRES_COPY_IN);
  Encoder encoder;
  encoder.Header();
  while (const auto chunk = queue.Take()) Encode(*chunk, encoder, connection.get());
  encoder.Int16(-1);
  encoder.SendTo(connection.get());
  connection.EndCopy();
} catch (const std::exception& error) {
  queue.End(error.what());
}

// ---- the engine

std::string Clean(const std::string& csv) {
  std::string quoted;
  for (const char c : csv) quoted += c == '\'' ? "''" : std::string(1, c);
  return "select * replace (upper(country) as country) from read_csv('" + quoted +
         "', header = true, auto_detect = false, delim = ',', quote = '\"', escape = '\"', columns = {'order_id': 'bigint', "
         "'customer_id': 'integer', 'created_at': 'timestamp', 'ship_date': 'date', 'qty': 'smallint', 'unit_price': "
         "'decimal(10,2)', 'discount': 'decimal(6,4)', 'country': 'varchar', 'sku': 'varchar', 'status': 'varchar'}) where "
         "order_id is not null";
}

// Gives the rows of `sql` to `queue`, and returns how many they were. What the engine holds is left to the process's end.
std::size_t Read(const std::string& sql, const char* threads, Queue& queue) {
  duckdb_config config = nullptr;
  duckdb_database database = nullptr;
  duckdb_connection connection = nullptr;
  duckdb_prepared_statement statement = nullptr;
  duckdb_result result;
  char* error = nullptr;
  if (duckdb_create_config(&config) != DuckDBSuccess || duckdb_set_config(config, "threads", threads) != DuckDBSuccess ||
      duckdb_set_config(config, "preserve_insertion_order", "false") != DuckDBSuccess)
    Stop("the engine does not take its settings");
  if (duckdb_open_ext(nullptr, &database, config, &error) != DuckDBSuccess) Stop(error);
  if (duckdb_connect(database, &connection) != DuckDBSuccess) Stop("no connection to the engine");
  if (duckdb_prepare(connection, sql.c_str(), &statement) != DuckDBSuccess) Stop(duckdb_prepare_error(statement));
  if (duckdb_execute_prepared_streaming(statement, &result) != DuckDBSuccess) Stop(duckdb_result_error(&result));
  std::size_t rows = 0;
  while (duckdb_data_chunk next = duckdb_fetch_chunk(result)) {
    auto chunk = std::make_unique<Chunk>(next);
    const std::size_t count = duckdb_data_chunk_get_size(next);
    if (count == 0) break;
    rows += count;
    if (!queue.Put(std::move(chunk))) break;
  }
  if (const char* failed = duckdb_result_error(&result); failed != nullptr) Stop(failed);
  return rows;
}

void Load(const char* csv, const char* conninfo, const std::string& table, int connections, const char* threads) {
  const auto start = std::chrono::steady_clock::now();
  Connection(conninfo).Run("create table " + table +
                               " (order_id bigint, customer_id integer, created_at timestamp, ship_date date, qty smallint, "
                               "unit_price numeric(10,2), discount numeric(6,4), country text, sku text, status text)",
                           PGRES_COMMAND_OK);
  Queue queue;
  std::size_t rows = 0;
  {
    std::vector<std::jthread> senders;
    for (int i = 0; i < connections; ++i) senders.emplace_back([&] { Send(conninfo, table, queue); });
    try {
      rows = Read(Clean(csv), threads, queue);
    } catch (const std::exception& error) {
      queue.End(error.what());
    }
    queue.End("");
  }
  if (!queue.failure().empty()) Stop(queue.failure());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  fmt::print("{{\"rows\": {}, \"seconds\": {:.3f}}}\n", rows, took.count());
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4) {
    fmt::print(stderr, "usage: millrace_plain_load CSV CONNINFO TABLE [CONNECTIONS] [THREADS]\n");
    return 2;
  }
  Load(argv[1], argv[2], argv[3], argc > 4 ? std::atoi(argv[4]) : 2, argc > 5 ? argv[5] : "2");
  std::fflush(nullptr);
  std::_Exit(0);  // the engine's memory goes with the process, faster
} catch (const std::exception& error) {
  fmt::print(stderr, "millrace_plain_load: {}\n", error.what());
  return 1;
}
