// Where datasets live under the lake's root, and the manifest that publishes one. A dataset is immutable: data files carry
// the token of the attempt that wrote them; the manifest is named by the effect and created once (renameat2
// RENAME_NOREPLACE after fsync of files and directory). Readers follow manifests only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/model/pipeline.h"
#include "common/model/stage_task.h"

namespace millrace {

struct DatasetFile {
  std::string path;         // relative to the lake's root for our own files, absolute for a referenced source file
  bool referenced = false;  // a source file, not ours: must still have these bytes when it is read
  FileFormat format = FileFormat::kParquet;
  std::int64_t bytes = 0;
  std::int64_t rows = 0;      // -1 = not counted (referenced text files)
  std::int64_t mtime_us = 0;  // referenced files
  std::string sha256;         // hex
  friend bool operator==(const DatasetFile&, const DatasetFile&) = default;
};

struct Manifest {
  std::string effect;
  Token token;  // of the attempt that published it
  RunId run;
  std::string stage;
  std::string layer;                // bronze | silver | gold
  std::vector<ColumnSpec> columns;  // the schema, pinned
  std::vector<DatasetFile> files;
  std::map<std::string, std::string> read_options;  // csv options that the files need
  RowCounts rows;
  StageResult result;  // as reported; a retry that finds the manifest reports it again
  friend bool operator==(const Manifest&, const Manifest&) = default;
};

std::string ToJson(const Manifest& manifest);
Result<Manifest> ManifestFromJson(std::string_view json);

// "<org>/<pipeline>/<stage>", under the lake's root.
std::string DatasetDir(OrgId org, std::string_view pipeline, std::string_view stage);
// "<dataset dir>/manifests/<first 32 hex of SHA-256 of the effect>.json"
std::string ManifestPath(OrgId org, std::string_view pipeline, std::string_view stage, std::string_view effect);
// "<dataset dir>/data/<32 hex>-<token>-<number>.parquet"
std::string DataFilePath(OrgId org, std::string_view pipeline, std::string_view stage, std::string_view effect, Token token,
                         int number);
// "<dataset dir>/schema.json": columns pinned by the first extract.
std::string PinnedSchemaPath(OrgId org, std::string_view pipeline, std::string_view stage);

}  // namespace millrace
