// The audited tables, once: their columns, how a struct becomes a row, a row a struct, and a row its canonical bytes. Both
// implementations write and read through this, and the verifier's leaves are computed from it. Internal to common/ledger.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/crypto/audit.h"
#include "common/ledger/ledger.h"

namespace millrace::ledger {

enum class ColumnType : std::uint8_t { kInt, kBool, kText, kBytes, kUuid, kTime, kUuidList };

struct Column {
  std::string_view name;
  ColumnType type;
  bool later = false;  // not of the table's first version: a null in it is no part of a row's leaf, so old leaves stay true
};

// One cell. Numbers, booleans and times (microseconds) are `number`; texts, bytes, ids (16 bytes) and lists of ids (16 bytes
// each) are `bytes`, a view of memory that somebody else keeps.
struct Value {
  bool null = true;
  std::int64_t number = 0;
  std::string_view bytes;
  static Value Of(std::int64_t n) { return {false, n, {}}; }
  static Value Of(WallTime t) { return {false, ToUnixMicros(t), {}}; }
  static Value Of(std::string_view b) { return {false, 0, b}; }
};

// Keeps texts that had to be changed on their way in.
using Arena = std::deque<std::string>;

enum class Table : std::uint8_t {
  kPipelineVersion,
  kSlot,
  kRun,
  kJob,
  kAttempt,
  kOutcome,
  kRunOutcome,
  kCancel,
  kQueueSetting,
  kBackfill,
  kDeadAction,
  kPruned
};
inline constexpr std::size_t kTableCount = 12;
inline constexpr std::array<Table, kTableCount> kTables = {
    Table::kPipelineVersion, Table::kSlot,   Table::kRun,          Table::kJob,      Table::kAttempt,    Table::kOutcome,
    Table::kRunOutcome,      Table::kCancel, Table::kQueueSetting, Table::kBackfill, Table::kDeadAction, Table::kPruned};

// A revision of a queue's settings.
struct QueueSettingRow {
  QueueSettings settings;
  ShardId shard;  // of the org, so that its owner finds them
  std::string actor;
  WallTime at{};
};

struct TableDef {
  std::string_view name;
  std::span<const Column> columns;  // without audit_writer, audit_seq, audit_index, which every audited table has at its end
  std::size_t key_columns;          // the first so many are the primary key
};
const TableDef& DefOf(Table table);

// Text that PostgreSQL stores unchanged: UTF-8 without NUL. Anything else has its bad bytes replaced by U+FFFD (in `arena`).
std::string_view CleanText(std::string_view text, Arena& arena);

// Appends one row's cells in the order of the table's columns. The struct must outlive the cells.
void Append(const PipelineVersion& row, Arena& arena, std::vector<Value>& cells);
void Append(const SlotRow& row, Arena& arena, std::vector<Value>& cells);
void Append(const RunSpec& row, Arena& arena, std::vector<Value>& cells);
void Append(const JobSpec& row, Arena& arena, std::vector<Value>& cells);
void Append(const AttemptRow& row, Arena& arena, std::vector<Value>& cells);
void Append(const OutcomeRow& row, Arena& arena, std::vector<Value>& cells);
void Append(const RunOutcomeRow& row, Arena& arena, std::vector<Value>& cells);
void Append(const CancelRow& row, Arena& arena, std::vector<Value>& cells);
void Append(const QueueSettingRow& row, Arena& arena, std::vector<Value>& cells);
void Append(const BackfillRow& row, Arena& arena, std::vector<Value>& cells);
void Append(const DeadActionRow& row, Arena& arena, std::vector<Value>& cells);
void Append(const PrunedChain& row, Arena& arena, std::vector<Value>& cells);

// The other way; `cells` begins with the table's columns in order.
PipelineVersion PipelineVersionFrom(std::span<const Value> cells);
SlotRow SlotFrom(std::span<const Value> cells);
RunSpec RunFrom(std::span<const Value> cells);
JobSpec JobFrom(std::span<const Value> cells);
AttemptRow AttemptFrom(std::span<const Value> cells);
OutcomeRow OutcomeFrom(std::span<const Value> cells);
RunOutcomeRow RunOutcomeFrom(std::span<const Value> cells);
CancelRow CancelFrom(std::span<const Value> cells);
Result<QueueSettings> QueueSettingsFrom(std::span<const Value> cells);  // kCorrupt: the stored text is no settings
BackfillRow BackfillFrom(std::span<const Value> cells);
DeadActionRow DeadActionFrom(std::span<const Value> cells);
PrunedChain PrunedChainFrom(std::span<const Value> cells);

// The leaf of a row: table, then every column; numbers as integers, all else as bytes.
Digest LeafOf(Table table, std::span<const Value> cells);
// "job 0189...", "slot 1 flights default 2026-11-21T06:15:00Z 0".
std::string KeyText(Table table, std::span<const Value> cells);

inline Uuid UuidOf(const Value& value) { return value.null ? Uuid{} : Uuid::FromBytes(value.bytes).value_or(Uuid{}); }
inline WallTime TimeOf(const Value& value) { return FromUnixMicros(value.number); }

}  // namespace millrace::ledger
