#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/crypto/audit.h"
#include "common/crypto/checkpoint.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "millrace-crypto-XXXXXX").string();
    path_ = mkdtemp(name.data()) == nullptr ? "" : name;
  }
  ~Folder() { fs::remove_all(path_); }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

std::string Hex(const Digest& d) { return ToHex(d); }

TEST(AuditTest, Sha256KnowsItsVectors) {
  EXPECT_EQ(Hex(Sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Hex(Sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(AuditTest, MerkleRootsAreThoseOfCertificateTransparency) {
  using namespace std::string_literals;
  const std::string inputs[] = {"",
                                "\0"s,
                                "\x10",
                                "\x20\x21",
                                "\x30\x31",
                                "\x40\x41\x42\x43",
                                "\x50\x51\x52\x53\x54\x55\x56\x57",
                                "\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f"};
  const char* const roots[] = {"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                               "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
                               "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
                               "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
                               "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
                               "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
                               "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
                               "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"};
  std::vector<Digest> leaves;
  EXPECT_EQ(MerkleRoot(leaves), Sha256(""));
  for (std::size_t i = 0; i < std::size(inputs); ++i) {
    leaves.push_back(Sha256("\0"s + inputs[i]));
    EXPECT_EQ(Hex(MerkleRoot(leaves)), roots[i]) << i;
  }
}

TEST(AuditTest, DifferentRowsHaveDifferentBytes) {
  const std::string rows[] = {CanonicalRow("t").Add("ab").Add("c").bytes(),
                              CanonicalRow("t").Add("a").Add("bc").bytes(),
                              CanonicalRow("t").Add("").bytes(),
                              CanonicalRow("t").AddNull().bytes(),
                              CanonicalRow("t").bytes(),
                              CanonicalRow("tT").bytes(),
                              CanonicalRow("t").Add(std::int64_t{0}).bytes(),
                              CanonicalRow("t").Add(std::string(8, '\0')).bytes()};
  for (std::size_t i = 0; i < std::size(rows); ++i)
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(rows[i], rows[j]) << i << " " << j;
}

TEST(AuditTest, ChainLinksAndHexRoundTrips) {
  AuditChain chain(AuditWriterId{}, "cli");
  const AuditRecord first = chain.Next({Sha256("a")}, FromUnixMicros(1));
  chain.Advance(first);
  const AuditRecord second = chain.Next({}, FromUnixMicros(2));
  EXPECT_EQ(second.seq, 2u);
  EXPECT_EQ(second.previous, first.Hash());
  EXPECT_EQ(*DigestFromHex(ToHex(first.root)), first.root);
  EXPECT_FALSE(DigestFromHex("ab"));
  EXPECT_FALSE(DigestFromHex(std::string(64, 'g')));
}

// After a commit whose outcome is not known: the record stands in the database, or the one before it still is the last.
TEST(AuditTest, AChainResumesWhereTheDatabaseIs) {
  AuditChain chain(AuditWriterId{}, "broker b1");
  const AuditRecord first = chain.Next({Sha256("a")}, WallTime{});
  chain.Advance(first);
  const AuditRecord second = chain.Next({Sha256("b")}, WallTime{});
  chain.Resume(first);
  EXPECT_EQ(chain.Next({Sha256("b")}, WallTime{}).Hash(), second.Hash()) << "nothing was lost and nothing is skipped";
  chain.Resume(second);
  const AuditRecord third = chain.Next({Sha256("c")}, WallTime{});
  EXPECT_EQ(third.seq, 3U);
  EXPECT_EQ(third.previous, second.Hash());
  AuditChain later(AuditWriterId{}, "broker b1");  // a process that takes the writer id over
  later.Resume(second);
  EXPECT_EQ(later.Next({Sha256("c")}, WallTime{}).Hash(), third.Hash());
}

TEST(SigningKeyTest, Rfc8032Vector1) {
  const auto seed = *DigestFromHex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
  const auto key = SigningKey::FromSeed({reinterpret_cast<const char*>(seed.data()), seed.size()});
  ASSERT_TRUE(key);
  EXPECT_EQ(ToHex(key->public_key()), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
  EXPECT_EQ(ToHex(key->Sign("")),
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
            "5141438e7a100b");
}

TEST(SigningKeyTest, IsMadeOncePrivatelyAndRefusedWhenOthersCanReadIt) {
  const Folder folder;
  const std::string path = folder / "keys/audit.key";
  const auto first = SigningKey::LoadOrCreate(path);
  ASSERT_TRUE(first) << first.error().message;
  struct stat status{};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  EXPECT_EQ(SigningKey::LoadOrCreate(path)->public_key(), first->public_key());
  EXPECT_EQ(*ReadPublicKey(path + ".pub"), first->public_key());
  fs::permissions(path, fs::perms::group_read, fs::perm_options::add);
  EXPECT_EQ(SigningKey::LoadOrCreate(path).error().code, ErrorCode::kRejected);
}

class CheckpointTest : public ::testing::Test {
 protected:
  AuditRecord Record() {
    AuditRecord record = chain_.Next({Sha256("x"), Sha256("y")}, FromUnixMicros(5));
    chain_.Advance(record);
    return record;
  }
  static std::vector<AuditHead> HeadOf(const AuditRecord& r) { return {{r.writer, r.seq, r.Hash()}}; }
  void WriteThree() {
    auto writer = CheckpointWriter::Open(dir_, key_, AuditWriterId{});
    ASSERT_TRUE(writer);
    file_ = writer->path();
    MonoTime now{};
    for (int i = 0; i < 3; ++i, now += 10s) {
      const AuditRecord records[] = {Record()};
      ASSERT_EQ(writer->MaybeWrite(now, FromUnixMicros(100 + i), HeadOf(records[0]), records).value_or(false), true);
    }
  }
  std::string Text() const {
    std::ifstream in(file_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void Write(const std::string& text) const { std::ofstream(file_, std::ios::binary) << text; }

  Folder folder_;
  std::string dir_ = folder_ / "checkpoints", file_;
  SigningKey key_ = *SigningKey::FromSeed(std::string(32, 'k'));
  AuditChain chain_{AuditWriterId{}, "broker b1"};
};

TEST_F(CheckpointTest, WritesEveryTenSecondsAndReadsBack) {
  auto writer = CheckpointWriter::Open(dir_, key_, AuditWriterId{});
  ASSERT_TRUE(writer);
  const AuditRecord first[] = {Record()}, second[] = {Record()}, third[] = {Record()};
  EXPECT_TRUE(*writer->MaybeWrite(MonoTime{}, FromUnixMicros(7), HeadOf(first[0]), first));
  EXPECT_FALSE(*writer->MaybeWrite(MonoTime{9s}, FromUnixMicros(8), HeadOf(second[0]), second));
  EXPECT_TRUE(*writer->MaybeWrite(MonoTime{10s}, FromUnixMicros(9), HeadOf(third[0]), third));
  EXPECT_FALSE(*writer->MaybeWrite(MonoTime{20s}, FromUnixMicros(10), HeadOf(third[0]), {}));  // nothing new
  const auto set = ReadCheckpoints(dir_, key_.public_key());
  ASSERT_TRUE(set) << set.error().message;
  EXPECT_TRUE(set->problems.empty());
  EXPECT_EQ(set->checkpoints, 2u);
  EXPECT_EQ(set->pins.size(), 3u);
  const auto& pin = set->pins.at({AuditWriterId{}, 2});
  EXPECT_EQ(pin.hash, second[0].Hash());
  EXPECT_EQ(*pin.leaf_prefixes, CheckpointEntry::Of(second[0]).leaf_prefixes);
}

TEST_F(CheckpointTest, AnyChangedByteOrLineIsAProblemAndATornLastLineIsNot) {
  WriteThree();
  const std::string good = Text();
  const auto problems = [&](const std::string& text) {
    Write(text);
    return ReadCheckpoints(dir_, key_.public_key())->problems.size();
  };
  ASSERT_EQ(problems(good), 0u);
  for (std::size_t i = 0; i < good.size(); i += 7) {
    if (good[i] == '\n') continue;
    std::string bad = good;
    bad[i] ^= 1;
    EXPECT_EQ(problems(bad), 1u) << i;
  }
  const std::size_t line = good.find('\n') + 1;
  EXPECT_EQ(problems(good.substr(line)), 1u) << "first line removed";
  EXPECT_EQ(problems(good.substr(0, line) + good), 1u) << "line repeated";
  EXPECT_EQ(problems(good.substr(0, good.size() - 9)), 0u);
  EXPECT_EQ(ReadCheckpoints(dir_, key_.public_key())->torn.size(), 1u);
  Write(good);
  EXPECT_EQ(ReadCheckpoints(dir_, SigningKey::FromSeed(std::string(32, 'z'))->public_key())->problems.size(), 1u);
}

// Two lines as the first format had them, of the key of these tests.
constexpr std::string_view kFirstFormat =
    R"({"at_us":100,"heads":[["00000000-0000-0000-0000-000000000007",1,"357390351f6072c0610c6ec4c704e3)"
    R"(e98bc67d80d36b70f6026fbb54eefd847b"]],"log":"00000000-0000-0000-0000-000000000009","previous":")"
    R"(0000000000000000000000000000000000000000000000000000000000000000","records":[["00000000-0000-00)"
    R"(00-0000-000000000007",1,"357390351f6072c0610c6ec4c704e3e98bc67d80d36b70f6026fbb54eefd847b","2d7)"
    R"(11642a1fce436"]],"seq":1,"signature":"6068d375ac30552f4ac5b1f929f9375c54dfe63ef99a46acf75cc81d5)"
    R"(f719a6aa9de0d5875376d5046d982713a447071d48d5de194ab0f64e9e5ed7262950308","v":1})"
    "\n"
    R"({"at_us":101,"heads":[["00000000-0000-0000-0000-000000000007",2,"9a222cc791326df0b25f35908cc757)"
    R"(33515fda0087a684070482cb3780f9c7bf"]],"log":"00000000-0000-0000-0000-000000000009","previous":")"
    R"(be05675c32671a8ab15b36ecc0e0a8d2838883899418525e0fecba49dba01ba4","records":[["00000000-0000-00)"
    R"(00-0000-000000000007",2,"9a222cc791326df0b25f35908cc75733515fda0087a684070482cb3780f9c7bf","2d7)"
    R"(11642a1fce436"]],"seq":2,"signature":"0461987f7ed8003127be541ccc34ff7b081d9244161cba82fd02c3897)"
    R"(f592599f10bedb1d6ca923c4493cadca117f2476d169eb19de2aedf99e9956eec504004","v":1})"
    "\n";

TEST_F(CheckpointTest, FilesOfTheFirstFormatVerifyAndAreContinued) {
  fs::create_directories(dir_);
  file_ = dir_ + "/00000000-0000-0000-0000-000000000009.checkpoints";
  Write(std::string(kFirstFormat));
  const auto old = ReadCheckpoints(dir_, key_.public_key());
  ASSERT_TRUE(old) << old.error().message;
  ASSERT_TRUE(old->problems.empty()) << old->problems[0];
  EXPECT_EQ(old->checkpoints, 2u);
  EXPECT_EQ(old->times.size(), 2u);
  AuditWriterId chain, log;
  chain.uuid.bytes[15] = 7;
  log.uuid.bytes[15] = 10;
  EXPECT_EQ(old->last_seq.at(chain), 2u);
  auto writer = CheckpointWriter::Open(dir_, key_, log);
  ASSERT_TRUE(writer);
  ASSERT_EQ(writer->written().size(), 1u);
  EXPECT_EQ(writer->written().at(chain).seq, 2u);
  EXPECT_EQ(writer->written().at(chain).hash, (old->pins.at({chain, 2}).hash));
  const AuditRecord record = Record();
  EXPECT_TRUE(*writer->MaybeWrite(MonoTime{}, FromUnixMicros(7), HeadOf(record), {&record, 1}));
  EXPECT_TRUE(ReadCheckpoints(dir_, key_.public_key())->problems.empty());
  Write(std::string(kFirstFormat.substr(0, kFirstFormat.find('\n') + 1)));
  EXPECT_EQ(ReadCheckpoints(dir_, key_.public_key())->problems.size(), 1u) << "the last line of the old file is gone";
}

TEST_F(CheckpointTest, AFileContinuesTheOneBeforeItAndMissesItWhenItIsGone) {
  AuditWriterId logs[3];
  for (std::uint8_t i = 0; i < 3; ++i) {
    logs[i].uuid.bytes[15] = static_cast<std::uint8_t>(i + 1);
    auto writer = CheckpointWriter::Open(dir_, key_, logs[i]);
    ASSERT_TRUE(writer);
    EXPECT_EQ(writer->written().size(), i == 0 ? 0u : 1u);
    for (int line = 0; line < 2; ++line) {
      const AuditRecord record = Record();
      ASSERT_TRUE(*writer->Flush(MonoTime{}, FromUnixMicros(i), HeadOf(record)));
    }
    EXPECT_FALSE(*writer->Flush(MonoTime{}, FromUnixMicros(i), {&writer->written().begin()->second, 1})) << "nothing new";
    if (i > 0)
      fs::last_write_time(writer->path(), fs::last_write_time(dir_ + "/" + logs[i - 1].ToString() + ".checkpoints") + 1s);
  }
  const auto tail = ReadCheckpointTail(dir_, key_.public_key());
  ASSERT_TRUE(tail && *tail);
  EXPECT_EQ((*tail)->last.log, logs[2]);
  EXPECT_EQ((*tail)->last.sequence, 2u);
  EXPECT_EQ((*tail)->heads.begin()->second.seq, 6u);
  ASSERT_TRUE(ReadCheckpoints(dir_, key_.public_key())->problems.empty());

  file_ = dir_ + "/" + logs[1].ToString() + ".checkpoints";
  const std::string good = Text();
  Write(good.substr(0, good.find('\n') + 1));
  EXPECT_EQ(ReadCheckpoints(dir_, key_.public_key())->problems.size(), 1u) << "a last line that another file continues is gone";
  EXPECT_EQ(ReadCheckpointTail(dir_, key_.public_key()).error().code, ErrorCode::kCorrupt);
  fs::remove(file_);
  const auto set = ReadCheckpoints(dir_, key_.public_key());
  ASSERT_EQ(set->problems.size(), 1u) << "a file in the middle is gone";
  EXPECT_NE(set->problems[0].find("continues line 2 of " + logs[1].ToString()), std::string::npos) << set->problems[0];
}

TEST_F(CheckpointTest, OnlyChangedHeadsAreWrittenAndAllOfThemOnceInAWhile) {
  auto writer = CheckpointWriter::Open(dir_, key_, AuditWriterId{});
  std::vector<AuditHead> heads;
  for (std::uint8_t i = 0; i < 50; ++i) {
    AuditHead& head = heads.emplace_back();
    head.writer.uuid.bytes[15] = i;
    head.seq = 1;
  }
  std::string big;
  AuditRecord record = Record();
  record.leaves.resize(10'000);
  for (int line = 0; line < 6; ++line) {
    ++heads[0].seq;
    ASSERT_TRUE(*writer->MaybeWrite(MonoTime{line * 10s}, FromUnixMicros(line), heads, {&record, 1}, line != 5));
  }
  std::ifstream in(writer->path());
  std::vector<std::size_t> written;
  for (std::string line; std::getline(in, line);) written.push_back(ParseCheckpointLine(line, key_.public_key())->heads.size());
  EXPECT_EQ(written, (std::vector<std::size_t>{50, 1, 1, 1, 1, 50})) << "80 kB a line, 256 kB until all heads come again";
  const auto set = ReadCheckpoints(dir_, key_.public_key());
  EXPECT_TRUE(set->problems.empty());
  EXPECT_EQ(set->checkpoints, 6u);
  EXPECT_EQ(set->times.size(), 5u) << "the last one was not complete";
  EXPECT_EQ((*ReadCheckpointTail(dir_, key_.public_key()))->heads.size(), 50u);
  EXPECT_FALSE(*writer->MaybeWrite(MonoTime{50s + 59min}, FromUnixMicros(8), heads, {}));
  EXPECT_TRUE(*writer->MaybeWrite(MonoTime{50s + 60min}, FromUnixMicros(9), heads, {})) << "an hour without news is news";
  EXPECT_FALSE(*writer->MaybeWrite(MonoTime{60s + 60min}, FromUnixMicros(9), heads, {}));
}

}  // namespace
}  // namespace millrace
