// Finds the place of something inside a pipeline file again: complaints that arise after parsing (types, columns, connections)
// point at the word itself. Of a file that ParsePipeline accepts.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/model/pipeline.h"

namespace millrace {

// A part of a stage, as a way down from its body: {"checks", "0", "unique", "1"} is the second name of the first check. A name
// is the key of a mapping, a number the position in a list; a text that stands for a list of one is its item 0, and
// `transform` its SQL in either form.
struct StagePart {
  std::vector<std::string> path{};
  bool key = false;                     // the last name itself, not its value
  std::optional<std::size_t> offset{};  // of a byte inside the text found there
  std::size_t length = 1;               // bytes to mark from `offset` on
};

struct Mark {
  SourcePlace place;
  int length = 1;  // columns
  friend bool operator==(const Mark&, const Mark&) = default;
};

// Reads the source once. Immutable, thread-safe.
class PipelinePlaces {
 public:
  explicit PipelinePlaces(std::string_view source);
  PipelinePlaces(PipelinePlaces&&) noexcept;
  ~PipelinePlaces();
  // The deepest part of the path that is there, or the stage's name; nothing if there is no such stage.
  std::optional<Mark> Find(std::string_view stage, const StagePart& part) const;

 private:
  struct Document;
  std::unique_ptr<const Document> document_;
};

}  // namespace millrace
