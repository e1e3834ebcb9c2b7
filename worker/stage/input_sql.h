// Datasets as readers see them: the manifest of an effect, the check that referenced source files are still the same, and a
// SELECT over the files with the pinned schema.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/model/lake.h"
#include "common/model/stage_task.h"
#include "worker/stage/files.h"

namespace millrace {

namespace duck {
class Connection;
}

// Reads and checks the manifest that `input` published. kNotFound: nothing was published. kCorrupt: not a manifest, or one
// of another effect.
Result<Manifest> LoadManifest(std::string_view lake, OrgId org, std::string_view pipeline, const StageInput& input);

// Every referenced file must still be a regular file of the recorded size and mtime; if only the mtime differs, its SHA-256
// decides. kConflict names the first file that changed or is gone (error class "source_changed").
Result<void> VerifySources(const Manifest& manifest);

// Every file of the lake must have the size and the SHA-256 with which it was published; a file that is not there is its
// reader's to report. kCorrupt names the first that is damaged (error class "corrupt").
Result<void> VerifyLake(const Manifest& manifest, std::string_view lake);

// Remembers source files as they are before they are read, to be asked before what was read of them counts. Files that were
// replaced or written to meanwhile may have given rows of neither version.
class SourceWatch {
 public:
  SourceWatch() = default;  // of no files
  // Errors as StampFile. Verify digests after this, not before.
  static Result<SourceWatch> Start(const std::vector<std::string>& paths);
  static Result<SourceWatch> Start(const std::vector<Manifest>& manifests);  // their referenced files
  // kConflict names the first file that was touched since Start.
  Result<void> Untouched() const;
  const FileStamp& stamp(std::size_t index) const { return files_[index].stamp; }  // in the order of `paths`

 private:
  struct File {
    std::string path;
    FileStamp stamp;
  };
  std::vector<File> files_;
};

// One SELECT over the manifest's files, columns in the pinned order with the pinned types. No files -> a SELECT of no rows.
Result<std::string> InputSql(const Manifest& manifest, std::string_view lake);

// The same rows by the quickest way there is: files that their extract has proven plain (kProvenRows) by a reader of our own,
// all others as InputSql says. The SELECT is of this connection.
Result<std::string> OfferInput(duck::Connection& connection, const Manifest& manifest, std::string_view lake);

// In a manifest's read_options: the number of rows of files that PlainCsv has proven. Not an option of the engine.
inline constexpr std::string_view kProvenRows = "proven_rows";

// The absolute paths that InputSql reads.
std::vector<std::string> InputPaths(const Manifest& manifest, std::string_view lake);

}  // namespace millrace
