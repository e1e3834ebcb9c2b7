// Which line a worker gets next. Only lines that may start something are linked: not empty, their queue not paused and below
// its limits, their limit key below its own; so nothing is ever looked at, popped and put back. The order: priority (strict
// with aging, or weighted, as the queue says), then fair turns between orgs, then queues in turn, then lines in turn. The
// rules are told in ops/docs/queue.md.
//
// Counts only; the entries are in the queue. No clock: times are given. Lines of one (queue, kind, root) form a class, which a
// worker serves as a whole. With n lines, keys and orgs every operation takes O(log n), amortized; Next also looks at the top
// of each class that the worker serves. Not thread-safe: owned by the dispatcher.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "broker/lines.h"
#include "broker/linked_list.h"
#include "broker/ready_buffer.h"
#include "broker/token_bucket.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/model/queue_settings.h"

namespace millrace {

// Of each job of a crowd of lines the index finds nothing in a cache. So what a turn asks of a line, a limit key, a queue, an
// org stands together at the front of each, in one line of the cache or two.
class LineIndex {
  static constexpr std::size_t kCacheLine = 64;
  struct Class;
  struct Key;
  struct Node;
  struct Org;
  struct Queue;

 public:
  // What one worker serves; made by ViewOf, kept by the worker.
  class View {
    friend class LineIndex;
    WorkerReach reach_;
    std::vector<Class*> served_;
  };

  // Since when no worker has served a line that has something ready.
  struct Unserved {
    MonoTime alone_since{};                  // whether there are workers or not
    std::optional<MonoTime> unserved_since;  // while there are
  };

  class alignas(kCacheLine) Line {
   public:
    Line(ShardId its_shard, LineRef named)
        : shard(its_shard), ref(std::move(named)), priority(static_cast<std::uint8_t>(key().priority)) {}
    const LineKey& key() const { return ref->key; }
    const std::string& name() const { return ref->name; }

   private:
    friend class LineIndex;
    bool linked = false;
    std::uint8_t level = 0;  // while linked: in which list of the node

   public:
    const ShardId shard;
    ReadyBuffer::List buffered;  // kept by the dispatcher: those of the ready ones that wait in its memory
    const LineRef ref;
    std::uint64_t ready = 0;  // entries that wait and are not promised to a claim

   private:
    Node* node = nullptr;
    Key* limit = nullptr;  // null: no limit key
    MonoTime since{};      // when it became non-empty or last had a turn
    // Until here in its first cache line, from here on in its second.
    ListLinks<Line> in_level, in_aging;
    std::optional<MonoTime> ages;  // in which list of agings_
    const std::uint8_t priority;   // as in its key

   public:
    bool warned = false;                 // kept by the dispatcher
    std::uint32_t claim = 0;             // kept by the dispatcher: its latest claim of this flush may be the one at this index
    std::unique_ptr<Unserved> unserved;  // kept by the dispatcher; null: a worker serves it, or nobody looked
  };

  // What something that was taken from a line counts against, as long as it counts and the shard is owned.
  class Slot {
   public:
    explicit operator bool() const { return queue_ != nullptr; }

   private:
    friend class LineIndex;
    Queue* queue_ = nullptr;
    Key* key_ = nullptr;
  };

  LineIndex();
  ~LineIndex();

  // The shard was taken at `now`: what its owner before spent is not known, so the buckets of its queues begin empty.
  void Own(ShardId shard, MonoTime now);
  // Replaces the settings of (org, queue). Takes effect at once; what runs goes on.
  void Set(ShardId shard, const QueueSettings& settings, MonoTime now);

  // Adds `n` ready entries. `name` must be LineKey::ToString() of a valid key; others are ignored.
  void Add(ShardId shard, const std::string& name, std::uint64_t n, MonoTime now);
  Line& Add(ShardId shard, const LineRef& line, std::uint64_t n, MonoTime now);  // where Find knows of none
  void Add(Line& line, std::uint64_t n, MonoTime now);
  // Takes note of the time: buckets fill, lines age. True: something may start that could not before.
  bool Advance(MonoTime now);
  // When Advance has to be called for a bucket, at the latest.
  std::optional<MonoTime> NextToken() const;

  std::shared_ptr<View> ViewOf(const WorkerReach& reach);
  // The line that the worker should be given next, or nullptr. Changes nothing that matters: the turn is over with Take.
  Line* Next(const View& worker);
  // How many entries of the line may start now: what is ready, within the limits of its queue and key.
  static std::uint64_t Allowance(const Line& line, MonoTime now);
  // Promises `n` entries to a claim: they count as running from now on. REQUIRES: n <= Allowance(line, now). `line` may be gone
  // afterwards.
  void Take(Line& line, std::uint64_t n, MonoTime now);
  // Of what was taken, `n` were not started after all. `org`, `queue` and `limit_key` as in LineKey.
  void GiveBack(const LineKey& key, std::uint64_t n, MonoTime now);
  // One more runs that was not taken from a line here.
  void Running(ShardId shard, const LineKey& key, MonoTime now);
  // One that was started runs no more.
  void Ended(const LineKey& key, MonoTime now);
  void Ended(const Slot& slot, MonoTime now);
  static Slot SlotOf(const Line& line);
  // Entries that leave the line for good, whatever the limits say. REQUIRES: n <= line.ready. `line` may be gone afterwards.
  void Remove(Line& line, std::uint64_t n, MonoTime now);

  // `n` of its entries are gone without a claim (they expired). Those that are promised to claims under way are left to them:
  // a claim that finds less than was counted says so.
  void Forget(ShardId shard, const std::string& name, std::uint64_t n, MonoTime now);

  // nullptr: there is none. Valid until it is empty, or its shard dropped.
  Line* Find(ShardId shard, const std::string& name) const;
  std::uint64_t erased() const { return erased_; }  // lines, ever: what was found is there as long as this is the same
  // How many orgs have something that may start at the priority at which the line stands. REQUIRES: `line` comes from Next.
  std::size_t OrgsBeside(const Line& line) const;
  // Every line that has something ready, eligible or not. `visit` must not change the index.
  template <class Visit>
  void ForEachReady(Visit visit) {
    for (auto& [key, line] : lines_)
      if (line->ready > 0) visit(*line);
  }
  // Every line of which something is buffered; the same rule.
  template <class Visit>
  void ForEachBuffered(Visit visit) {
    for (auto& [key, line] : lines_)
      if (line->buffered.count() > 0) visit(*line);
  }
  // REQUIRES: nothing of it is buffered.
  void DropShard(ShardId shard);
  bool Empty() const { return total_ready_ == 0; }
  bool NothingEligible() const { return linked_nodes_ == 0; }
  std::uint64_t Ready(ShardId shard) const;
  std::uint64_t Ready(ShardId shard, const std::string& line) const;
  struct Counts {
    std::uint64_t ready = 0;
    std::uint64_t running = 0;  // and promised to claims
  };
  // Of every queue of the org that is known here.
  std::map<std::string, Counts> CountsOf(OrgId org) const;
  Counts CountsOf(OrgId org, const std::string& queue) const;
  std::uint64_t RunningOfKey(OrgId org, const std::string& queue, const std::string& limit_key) const;

 private:
  using LevelList = LinkedList<Line, &Line::in_level>;
  using AgingList = LinkedList<Line, &Line::in_aging>;
  using TimerAt = std::pair<MonoTime, std::uint64_t>;
  using Waker = std::variant<Queue*, Key*>;
  struct NodeOrder {
    bool operator()(const Node* a, const Node* b) const;
  };
  struct alignas(kCacheLine) Queue {
    std::uint64_t used = 0, ready = 0;
    std::uint64_t clock = 0;  // the pass at which it was last served
    std::uint64_t turn = 0;
    std::array<std::uint32_t, kPriorityLevels> linked{};
    Micros aging{};  // here and in `order`: as in `settings`
    QueueOrder order = QueueOrder::kStrict;
    bool open = true;
    bool limited = false, limits_keys = false;  // whether `settings` may hold something back
    // From here on it is asked for less often.
    std::array<std::uint64_t, kPriorityLevels> pass{};  // kWeighted
    OrgId org;
    ShardId shard;
    std::string name;
    QueueSettings settings;
    TokenBucket bucket;
    std::size_t lines = 0;
    std::vector<Node*> nodes;
    std::map<std::string, std::unique_ptr<Key>, std::less<>> keys;
    std::optional<TimerAt> wake;  // only while it is not open
    void Follow(const QueueSettings& its);
  };
  struct alignas(kCacheLine) Key {
    std::uint64_t used = 0;
    Queue* queue = nullptr;
    std::vector<Line*> lines;  // one per priority, root and kind
    bool open = true;
    bool idles = false;  // `idle` is in idles_
    // From here on only where its queue limits its keys.
    TokenBucket bucket;
    std::optional<TimerAt> wake;  // only while it is not open
    TimerAt idle;
    std::string name;
  };
  struct alignas(kCacheLine) Org {
    struct Level {
      std::uint64_t pass = 0;  // jobs it was given at this level, from a common start
      std::uint64_t turn = 0;
      std::uint32_t linked = 0;  // nodes
    };
    OrgId id;
    std::size_t nodes = 0;
    std::array<Level, kPriorityLevels> at;
  };
  struct alignas(kCacheLine) Node {  // the lines of one org in one class
    bool linked = false;
    std::uint8_t level = 0;            // while linked: its place in the class, with `pass` and `turn`;
    std::uint32_t lines = 0;           // linked or not
    std::uint64_t pass = 0, turn = 0;  // may lag behind the org's numbers, which only grow
    Org* org = nullptr;
    Queue* queue = nullptr;
    Class* cls = nullptr;
    std::uint64_t served = 0;                    // turn
    std::set<Node*, NodeOrder>::iterator place;  // while linked
    std::array<LevelList, kPriorityLevels> levels;
  };
  using ClassName = std::tuple<std::string, std::string, std::string>;  // queue, kind, root
  struct Class {
    ClassName name;
    std::map<OrgId, std::unique_ptr<Node>> nodes;
    std::set<Node*, NodeOrder> order;  // the linked ones
  };

  Queue& QueueOf(ShardId shard, OrgId org, const std::string& name, MonoTime now);
  Key& KeyOf(ShardId shard, Queue& queue, const std::string& name, MonoTime now);
  Queue* FindQueue(OrgId org, std::string_view name) const;
  Line& NewLine(ShardId shard, const LineRef& named, MonoTime now);
  void Erase(Line& line);
  void DropNodeIfIdle(Node& node);
  void DropQueueIfIdle(Queue& queue);
  void DropKeyIfIdle(Key& key, MonoTime now);
  static bool MayStart(Queue& queue, MonoTime now);
  static bool MayStart(Key& key, MonoTime now);
  bool Refresh(Queue& queue, MonoTime now);  // true: it opened
  bool Refresh(Key& key, MonoTime now);
  void Link(Line& line, MonoTime now);
  void Unlink(Line& line);
  void Relink(Line& line, MonoTime now);
  static bool UpToDate(const Node& node);  // its place is where its org is now. REQUIRES: linked
  void Place(Node& node);
  void Free(const LineKey& key, std::uint64_t n, bool tokens, MonoTime now);
  void Free(Queue& queue, Key* limit, std::uint64_t n, bool tokens, MonoTime now);
  static std::uint8_t LevelOf(const Line& line, MonoTime now);
  static Line* FrontOf(Node& node);
  template <class T>
  void SetWake(T& sleeper, std::optional<MonoTime> at);

  using LineName = std::pair<ShardId, std::string_view>;  // the name is the line's own
  struct LineNameHash {
    std::size_t operator()(const LineName& of) const {
      return std::hash<std::string_view>{}(of.second) ^ (of.first.value() * std::size_t{0x9e3779b97f4a7c15});
    }
  };

  using QueueName = std::pair<OrgId, std::string_view>;  // the name is the queue's own
  struct QueueNameHash {
    std::size_t operator()(const QueueName& of) const {
      return std::hash<std::string_view>{}(of.second) ^ (std::hash<OrgId>{}(of.first) * std::size_t{0x9e3779b97f4a7c15});
    }
  };

  std::unordered_map<LineName, std::unique_ptr<Line>, LineNameHash> lines_;
  mutable Line* last_ = nullptr;  // that was asked for: what is asked next is mostly the same
  std::map<std::pair<OrgId, std::string>, std::unique_ptr<Queue>, std::less<>> queues_;
  std::unordered_map<QueueName, Queue*, QueueNameHash> queue_of_;  // the same ones
  std::map<OrgId, std::unique_ptr<Org>> orgs_;
  std::map<ClassName, std::unique_ptr<Class>> classes_;
  std::vector<std::weak_ptr<View>> views_;
  std::map<ShardId, MonoTime> owned_since_;
  std::map<ShardId, std::uint64_t> ready_;
  std::map<TimerAt, Waker> wakes_;
  std::map<MonoTime, AgingList> agings_;  // lines that are linked, by when they rise: in lists, because many have the same turn
  std::map<TimerAt, Key*> idles_;
  std::array<std::uint64_t, kPriorityLevels> clock_{};  // the pass at which an org was last served
  std::array<std::size_t, kPriorityLevels> orgs_at_{};
  std::uint64_t total_ready_ = 0, linked_nodes_ = 0, last_turn_ = 0, last_timer_ = 0, erased_ = 0;
};

}  // namespace millrace
