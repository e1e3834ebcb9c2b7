// "did you mean": the closest of the names that would have been right.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace millrace {

// The candidate with the smallest edit distance to `wrong` (insert, delete, replace and swap of neighbours cost 1; case is
// ignored), if that distance is at most a third of the longer name and at least one candidate is that near. The first of
// equals wins, so the answer is deterministic. Names over 64 bytes get no suggestion. Pure; thread-safe.
std::optional<std::string> Suggest(std::string_view wrong, std::span<const std::string_view> candidates);

}  // namespace millrace
