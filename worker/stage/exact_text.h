// Numbers that come as text: the engine's casts round what does not fit, 10.55 becomes the bigint 11. This says where they
// would.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/model/pipeline.h"

namespace millrace {

bool IsDecimalType(std::string_view type);  // decimal(p,s)
// Integers and decimals, by their canonical names.
bool IsExactType(std::string_view type);

// date, time and timestamps without time zone: casting text to them drops what they have no place for.
bool IsTemporalType(std::string_view type);

// A SQL boolean, never null: true where casting the text `text_sql` to `type` would lose something: a fraction, a UTC offset
// other than zero, for a date a time of day other than midnight. REQUIRES: IsExactType(type) or IsTemporalType(type).
std::string TextLosesSql(std::string_view text_sql, std::string_view type);

// A SQL boolean, never null: true where the text is a whole number that a double does not hold exactly.
std::string WideIntegerSql(std::string_view text_sql);

// What to do about a value that would lose something: " (declare timestamptz to keep its UTC offset)", or nothing.
std::string LossAdvice(std::string_view type);

// SQL of a row's columns as one JSON text. Built from the columns, because a table's alias gives way to a column of that name.
std::string RowJson(const std::vector<ColumnSpec>& columns);

}  // namespace millrace
