// Keeps a connection's secret out of what people read.
#pragma once

#include <string>
#include <string_view>

namespace millrace::load {

// `text` with the dsn, its password and, since a password that was not percent-encoded ends up in host, port or database, every
// piece of it as "***": raw and percent-decoded. Pieces below three bytes stay. Thread-safe.
std::string Scrubbed(std::string text, std::string_view dsn);

}  // namespace millrace::load
