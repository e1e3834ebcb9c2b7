// Writes tests/fuzz/corpus/wire: one frame of each kind, a job spec, and the classic bombs. Run by hand after a change of the
// protocol: build/dev/fuzz/make_wire_corpus tests/fuzz/corpus/wire
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "common/wire/codec.h"
#include "tests/support/random_messages.h"

int main(int argc, char** argv) {
  using namespace millrace;
  if (argc != 2) return std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]), 2;
  const std::filesystem::path folder = argv[1];
  std::filesystem::create_directories(folder);
  const auto write = [&](const std::string& name, std::string_view bytes) {
    std::ofstream(folder / name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  };
  SeededRandom random(4);
  testing::RandomMessages make(random);
  for (const auto& message : make.All()) {
    const std::string frame = wire::Encode(message);
    write(std::string(wire::Name(wire::KindOf(frame))), frame);
  }
  write("job_spec", wire::EncodeJobSpec(make.MakeJobSpec()));
  const std::string grant{static_cast<char>(wire::kProtocolVersion), static_cast<char>(wire::Kind::kGrant)};
  write("bomb_array", grant + "\xDD\xFF\xFF\xFF\xFF");
  write("bomb_map", grant + "\xDF\xFF\xFF\xFF\xFF");
  write("bomb_string", grant + "\xDB\xFF\xFF\xFF\xFF");
  write("bomb_depth", grant + std::string(40, '\x91'));
  write("other_version", std::string("\x02\x01\x90", 3));
}
