// Numbers that come as text: the engine's casts round what does not fit, 10.55 becomes the bigint 11. This says where they
// would.
#pragma once

#include <string>
#include <string_view>

namespace millrace {

bool IsDecimalType(std::string_view type);  // decimal(p,s)
// Integers and decimals, by their canonical names.
bool IsExactType(std::string_view type);

// A SQL boolean, never null: true where casting the text `text_sql` to `type` would round. REQUIRES: IsExactType(type).
std::string TextRoundsSql(std::string_view text_sql, std::string_view type);

}  // namespace millrace
