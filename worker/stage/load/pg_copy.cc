#include "worker/stage/load/pg_copy.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "common/base/failpoint.h"

namespace millrace::load {
namespace {

constexpr auto kSendTimeout = std::chrono::minutes{10};  // one buffer, or the end of a COPY (triggers, deferred checks)
constexpr std::size_t kBuffersPerTarget = 3;

Int128 Wide(duck::Int128 v) {
  return static_cast<Int128>((static_cast<Uint128>(static_cast<std::uint64_t>(v.upper)) << 64) | v.lower);
}

// One column of one chunk, and how to write one of its values.
struct Cell {
  duck::ChunkColumn column;
  PgWire wire;
  duck::Type storage;
  int scale;
};

Int128 Unscaled(const Cell& cell, std::size_t row) {
  switch (cell.storage) {
    case duck::Type::kInt16: return cell.column.Values<std::int16_t>()[row];
    case duck::Type::kInt32: return cell.column.Values<std::int32_t>()[row];
    case duck::Type::kInt64: return cell.column.Values<std::int64_t>()[row];
    default: return Wide(cell.column.Values<duck::Int128>()[row]);
  }
}

// False: the value cannot be stored.
bool EncodeValue(const Cell& cell, std::size_t row, PgBinaryBuffer& out) {
  const duck::ChunkColumn& c = cell.column;
  switch (cell.wire) {
    case PgWire::kBool: out.Bool(c.Values<bool>()[row]); return true;
    case PgWire::kInt2: out.Int2(c.Values<std::int16_t>()[row]); return true;
    case PgWire::kInt4: out.Int4(c.Values<std::int32_t>()[row]); return true;
    case PgWire::kInt8: out.Int8(c.Values<std::int64_t>()[row]); return true;
    case PgWire::kFloat4: out.Float4(c.Values<float>()[row]); return true;
    case PgWire::kFloat8: out.Float8(c.Values<double>()[row]); return true;
    case PgWire::kNumeric: out.Numeric(Unscaled(cell, row), cell.scale); return true;
    case PgWire::kHugeint: out.Numeric(Wide(c.Values<duck::Int128>()[row]), 0); return true;
    case PgWire::kText:
    case PgWire::kJsonb: {
      const std::string_view text = c.Text(row);
      if (std::memchr(text.data(), 0, text.size()) != nullptr || text.size() >= (1U << 30)) return false;
      if (cell.wire == PgWire::kText)
        out.Bytes(text);
      else
        out.Jsonb(text);
      return true;
    }
    case PgWire::kBytea: {
      const std::string_view bytes = c.Text(row);
      if (bytes.size() >= (1U << 30)) return false;
      out.Bytes(bytes);
      return true;
    }
    case PgWire::kDate: {
      const std::int32_t days = c.Values<std::int32_t>()[row];
      if (!PgBinaryBuffer::IsPgDate(days)) return false;
      out.Date(days);
      return true;
    }
    case PgWire::kTime: out.Time(c.Values<std::int64_t>()[row]); return true;
    case PgWire::kTimestamp: {
      const std::int64_t micros = c.Values<std::int64_t>()[row];
      if (!PgBinaryBuffer::IsPgTimestamp(micros)) return false;
      out.Timestamp(micros);
      return true;
    }
    case PgWire::kInterval: {
      const duck::Interval v = c.Values<duck::Interval>()[row];
      out.Interval(v.months, v.days, v.micros);
      return true;
    }
    case PgWire::kUuid: {
      const auto bytes = duck::UuidBytes(c.Values<duck::Int128>()[row]);
      out.Bytes({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
      return true;
    }
  }
  return false;
}

// Numbers, texts and truth values: what keys are made of.
void AddTo(RowLabel& label, std::size_t at, const Cell& cell, std::size_t row) {
  const duck::ChunkColumn& c = cell.column;
  if (c.IsNull(row)) return label.Add(at, "null");
  switch (cell.wire) {
    case PgWire::kBool: return label.Add(at, c.Values<bool>()[row] ? "true" : "false");
    case PgWire::kInt2: return label.Add(at, fmt::format("{}", c.Values<std::int16_t>()[row]));
    case PgWire::kInt4: return label.Add(at, fmt::format("{}", c.Values<std::int32_t>()[row]));
    case PgWire::kInt8: return label.Add(at, fmt::format("{}", c.Values<std::int64_t>()[row]));
    case PgWire::kFloat4: return label.Add(at, fmt::format("{}", c.Values<float>()[row]));
    case PgWire::kFloat8: return label.Add(at, fmt::format("{}", c.Values<double>()[row]));
    case PgWire::kText:
    case PgWire::kJsonb: return label.Add(at, c.Text(row));
    default: return;
  }
}

std::string_view WhyNot(PgWire wire) {
  switch (wire) {
    case PgWire::kText:
    case PgWire::kJsonb: return "the text contains a zero byte or is 1 GiB or longer";
    case PgWire::kBytea: return "the value is 1 GiB or longer";
    case PgWire::kDate: return "the date is infinite or outside PostgreSQL's range";
    default: return "the timestamp is infinite or outside PostgreSQL's range";
  }
}

bool StorageFits(const PgColumn& column, const duck::ColumnType& type) {
  using T = duck::Type;
  switch (column.wire) {
    case PgWire::kBool: return type.type == T::kBoolean;
    case PgWire::kInt2: return type.type == T::kInt16;
    case PgWire::kInt4: return type.type == T::kInt32;
    case PgWire::kInt8: return type.type == T::kInt64;
    case PgWire::kFloat4: return type.type == T::kFloat;
    case PgWire::kFloat8: return type.type == T::kDouble;
    case PgWire::kNumeric: return type.type == T::kDecimal && type.scale == column.scale;
    case PgWire::kHugeint: return type.type == T::kHugeInt;
    case PgWire::kText:
    case PgWire::kJsonb: return type.type == T::kVarchar;
    case PgWire::kBytea: return type.type == T::kBlob;
    case PgWire::kDate: return type.type == T::kDate;
    case PgWire::kTime: return type.type == T::kTime;
    case PgWire::kTimestamp: return type.type == T::kTimestamp || type.type == T::kTimestampTz;
    case PgWire::kInterval: return type.type == T::kInterval;
    case PgWire::kUuid: return type.type == T::kUuid;
  }
  return false;
}

using Buffer = std::unique_ptr<PgBinaryBuffer>;

// Full buffers from the encoder to one thread per connection. Bounded: the encoder waits for a free buffer.
class SenderPool {
 public:
  SenderPool(const std::vector<PgConnection*>& targets, const Clock& clock) : clock_(clock) {
    for (std::size_t i = 0; i < targets.size() * kBuffersPerTarget; ++i) free_.push_back(std::make_unique<PgBinaryBuffer>());
    for (PgConnection* target : targets) threads_.emplace_back([this, target] { Send(*target); });
  }
  ~SenderPool() { End(true); }

  // Waits for an empty buffer; nullptr after a sender failed.
  Buffer Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !free_.empty() || failure_; });
    if (failure_) return nullptr;
    Buffer buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  void Give(Buffer buffer) {
    {
      const std::scoped_lock lock(mutex_);
      full_.push_back(std::move(buffer));
    }
    changed_.notify_all();
  }
  // Ends all COPYs (or aborts them) and joins; the first failure, if any.
  std::optional<Error> End(bool abort) {
    {
      const std::scoped_lock lock(mutex_);
      ended_ = true;
      abort_ = abort_ || abort;
    }
    changed_.notify_all();
    for (std::thread& t : threads_)
      if (t.joinable()) t.join();
    return failure_;
  }
  std::int64_t copied_rows() const { return copied_rows_; }  // REQUIRES: after End

 private:
  MonoTime Deadline() const { return clock_.Now() + kSendTimeout; }

  Buffer NextFull() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !full_.empty() || ended_ || failure_; });
    if (abort_ || failure_ || full_.empty()) return nullptr;
    Buffer buffer = std::move(full_.front());
    full_.pop_front();
    return buffer;
  }

  void Send(PgConnection& target) {
    PgBinaryBuffer frame;
    frame.Header();
    auto sent = target.PutCopyData(frame.view(), Deadline());
    while (sent) {
      Buffer buffer = NextFull();
      if (!buffer) break;
      sent = target.PutCopyData(buffer->view(), Deadline());
      buffer->Clear();
      {
        const std::scoped_lock lock(mutex_);
        free_.push_back(std::move(buffer));
      }
      changed_.notify_all();
    }
    if (!sent) return Fail(std::move(sent.error()), target);
    {
      std::unique_lock lock(mutex_);
      if (abort_ || failure_) {
        lock.unlock();
        if (!target.broken()) (void)target.AbortCopy("the load was given up", Deadline());
        return;
      }
    }
    frame.Clear();
    frame.Trailer();
    if (auto last = target.PutCopyData(frame.view(), Deadline()); !last) return Fail(std::move(last.error()), target);
    auto rows = target.EndCopy(Deadline());
    if (!rows) return Fail(std::move(rows.error()), target);
    const std::scoped_lock lock(mutex_);
    copied_rows_ += *rows;
  }

  void Fail(Error error, PgConnection& target) {
    if (!target.broken()) (void)target.AbortCopy("the load was given up", Deadline());
    {
      const std::scoped_lock lock(mutex_);
      if (!failure_) failure_ = std::move(error);
    }
    changed_.notify_all();
  }

  const Clock& clock_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Buffer> free_;
  std::deque<Buffer> full_;
  bool ended_ = false, abort_ = false;
  std::optional<Error> failure_;
  std::int64_t copied_rows_ = 0;
  std::vector<std::thread> threads_;
};

// A value that DuckDB cannot cast is the data's fault, not the destination's.
Result<std::size_t> NextChunk(duck::RowStream& stream) {
  auto rows = stream.Next();
  if (!rows && rows.error().code == ErrorCode::kRejected) rows.error().code = ErrorCode::kInvalidArgument;
  return rows;
}

// Pulls, encodes and hands over all rows.
Result<CopyTotals> Pump(duck::RowStream& stream, const std::vector<PgColumn>& columns, SenderPool& pool,
                        const ProgressFn& progress) {
  CopyTotals totals;
  Buffer buffer = pool.Take();
  const auto flush = [&]() -> Result<void> {
    totals.bytes += static_cast<std::int64_t>(buffer->size());
    pool.Give(std::move(buffer));
    buffer = pool.Take();
    if (!buffer) return Fail(ErrorCode::kCancelled, "a sender failed");
    MILLRACE_FAILPOINT("load.mid_copy");
    return {};
  };
  if (!buffer) return Fail(ErrorCode::kCancelled, "a sender failed");
  while (true) {
    MILLRACE_TRY_ASSIGN(const std::size_t rows, NextChunk(stream));
    if (rows == 0) break;
    MILLRACE_TRY(EncodeChunk(stream, rows, columns, *buffer));
    totals.rows += static_cast<std::int64_t>(rows);
    if (buffer->size() >= kCopyFlushBytes) {
      MILLRACE_TRY(flush());
      if (progress) progress(totals.rows, totals.bytes);
    }
  }
  if (buffer->size() != 0) MILLRACE_TRY(flush());
  if (progress) progress(totals.rows, totals.bytes);
  return totals;
}

}  // namespace

RowLabel::RowLabel(const std::vector<PgColumn>& columns) : columns_(columns) {
  keyed_ = std::any_of(columns.begin(), columns.end(), [](const PgColumn& c) { return c.identifies; });
}

void RowLabel::Add(std::size_t column, std::string_view value) {
  constexpr int kShownMax = 3;
  constexpr std::size_t kBytesShownMax = 40;
  if (keyed_ ? !columns_[column].identifies : shown_ == kShownMax) return;
  ++shown_;
  text_ += fmt::format("{}{}=", text_.empty() ? "" : ", ", columns_[column].name);
  for (const char c : value.substr(0, kBytesShownMax)) text_ += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  if (value.size() > kBytesShownMax) text_ += "...";
}

Result<void> EncodeChunk(const duck::RowStream& stream, std::size_t rows, const std::vector<PgColumn>& columns,
                         PgBinaryBuffer& buffer) {
  std::vector<Cell> cells;
  cells.reserve(columns.size());
  for (std::size_t i = 0; i < columns.size(); ++i)
    cells.push_back({stream.Column(i), columns[i].wire, stream.columns()[i].storage, columns[i].scale});
  const auto count = static_cast<std::int16_t>(columns.size());
  for (std::size_t row = 0; row < rows; ++row) {
    buffer.BeginRow(count);
    for (std::size_t i = 0; i < cells.size(); ++i) {
      if (cells[i].column.IsNull(row)) {
        buffer.Null();
      } else if (!EncodeValue(cells[i], row, buffer)) [[unlikely]] {
        RowLabel label(columns);
        for (std::size_t k = 0; k < cells.size(); ++k) AddTo(label, k, cells[k], row);
        return Fail(ErrorCode::kInvalidArgument, "column '{}': {}{}{}", columns[i].name, WhyNot(columns[i].wire),
                    label.text() == "()" ? "" : ", in the row ", label.text() == "()" ? "" : label.text());
      }
    }
  }
  return {};
}

Result<CopyTotals> CopyRows(duck::Connection& source, std::string_view select_sql, const std::vector<PgColumn>& columns,
                            const std::vector<PgConnection*>& targets, std::string_view copy_sql, const Clock& clock,
                            const ProgressFn& progress) {
  auto opened = source.Stream(select_sql);
  if (!opened && opened.error().code == ErrorCode::kRejected) opened.error().code = ErrorCode::kInvalidArgument;
  if (!opened) return std::unexpected(std::move(opened.error()));
  duck::RowStream& stream = *opened;
  if (stream.columns().size() != columns.size())
    return Fail(ErrorCode::kCorrupt, "the dataset has {} columns, its manifest {}", stream.columns().size(), columns.size());
  for (std::size_t i = 0; i < columns.size(); ++i)
    if (!StorageFits(columns[i], stream.columns()[i]))
      return Fail(ErrorCode::kUnsupported, "column '{}': DuckDB sends {}, {} needs another form", columns[i].name,
                  stream.columns()[i].sql_type, columns[i].pg_type);
  for (PgConnection* target : targets) MILLRACE_TRY(target->StartCopyIn(copy_sql, clock.Now() + kSendTimeout));
  SenderPool pool(targets, clock);
  auto totals = Pump(stream, columns, pool, progress);
  if (auto failed = pool.End(!totals)) return std::unexpected(std::move(*failed));
  if (!totals) return totals;
  if (pool.copied_rows() != totals->rows)
    return Fail(ErrorCode::kInvalidArgument, "{} rows were sent, the destination took {}: a trigger of the table dropped some",
                totals->rows, pool.copied_rows());
  return totals;
}

}  // namespace millrace::load
