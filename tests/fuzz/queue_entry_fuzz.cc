// Any bytes as "line\nentry" of a queue: what decodes is what an encoder would have made of the same job, what does not is
// corrupt and says so.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "broker/entry_codec.h"
#include "broker/lines.h"
#include "tests/fuzz/accepted.h"

namespace {

void CheckRefusal(const millrace::Error& error) {
  if (error.code != millrace::ErrorCode::kCorrupt || error.message.empty()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace millrace;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t end = text.find('\n');
  const auto line = LineKey::Parse(text.substr(0, end));
  if (!line) return CheckRefusal(line.error()), 0;
  const auto same = LineKey::Parse(line->ToString());
  if (!same || *same != *line) std::abort();
  if (end == std::string_view::npos) return 0;

  JobId id;
  for (std::size_t i = 0; i < id.uuid.bytes.size(); ++i) id.uuid.bytes[i] = static_cast<std::uint8_t>(i + 1);
  const auto entry = DecodeEntry(text.substr(end + 1), id, *line);
  if (!entry) return CheckRefusal(entry.error()), 0;
  ++fuzz::accepted;
  const auto again = DecodeEntry(EncodeEntry(entry->spec, entry->counters, *line, entry->check), id, *line);
  if (!again || *again != *entry) std::abort();
  return 0;
}
