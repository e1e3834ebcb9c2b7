// The file that load benchmarks read: orders, ten columns, about 87 bytes a row, the same for the same number of rows.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/result.h"

namespace millrace::bench {

struct SampleFile {
  std::uint64_t rows = 0, kept = 0;  // kept: those whose key is not empty, about 98 %
  std::uint64_t key_sum = 0;         // of the keys of kept rows: two loads agree when both do
  std::uint64_t bytes = 0;
};
// Writes `rows` rows and a header. kUnavailable: cannot write it.
Result<SampleFile> WriteSampleCsv(const std::string& path, std::uint64_t rows);

// What a merge into those `rows` reads: each tenth of them again with another quantity. All have a key: where the first file
// has none, the row is new. `kept` and `key_sum` are those of the rows that are new.
Result<SampleFile> WriteSampleChanges(const std::string& path, std::uint64_t rows);

}  // namespace millrace::bench
