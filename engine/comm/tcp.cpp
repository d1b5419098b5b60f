// Ranks that exchange over TCP: in a ring, each sends to the next and hears from the one before. Their watch
// (watch.h) has connections of its own.
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "engine/base/error.h"
#include "engine/comm/launch.h"
#include "engine/comm/socket.h"
#include "engine/comm/watch.h"

namespace regolith {
namespace {

constexpr std::chrono::seconds kLate{5};  // for which a meeting that was refused tells those that come
constexpr size_t kPiece = 256 << 10;      // of a broadcast, which goes from rank to rank
constexpr char kMagic[8] = {'r', 'e', 'g', 'o', 'l', 'i', 't', '2'};

struct Hello {
  char magic[8] = {};
  char job[64] = {}, host[64] = {};
  int32_t rank = 0, size = 0, port = 0;  // port: where it listens for the rank before it
};
struct Answer {
  char refusal[512] = {};  // empty: the places of all ranks follow
};
struct Place {
  char address[64] = {}, host[64] = {};
  int32_t port = 0;
};

template <size_t N>
void put(char (&to)[N], const std::string& text) {
  text.copy(to, N - 1);
}

class Tcp : public Communicator {
 public:
  explicit Tcp(const Launch& launch) : rank_(launch.rank), size_(launch.size) {
    const auto until = Socket::Clock::now() + kMeeting;
    const Socket ring = Socket::listen(0, 1);
    Hello own;
    std::memcpy(own.magic, kMagic, sizeof kMagic);
    put(own.job, launch.job);
    put(own.host, host_name());
    own.rank = rank_, own.size = size_, own.port = ring.port();
    std::vector<Place> places(size_);
    std::vector<Socket> connections =
        rank_ == 0 ? meet_all(launch, own, places, until) : meet_root(launch, own, places, until);
    std::vector<std::string> names;
    for (int r = 0; r < size_; ++r) names.push_back(rank_name(r, size_, places[r].host));
    name_ = names[rank_];
    join_ring(ring, own, places, until);
    watch_ = std::make_unique<Watch>(rank_, names, std::move(connections));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return name_; }

  void gather(const void* mine, size_t bytes, void* all) override {
    auto* blocks = static_cast<char*>(all);
    if (bytes > 0 && blocks + rank_ * bytes != mine) std::memcpy(blocks + rank_ * bytes, mine, bytes);
    for (int step = 0; step + 1 < size_; ++step)
      exchange(blocks + at(rank_ - step) * bytes, bytes, blocks + at(rank_ - step - 1) * bytes, bytes);
  }

  void broadcast(void* data, size_t bytes, int from) override {
    auto* p = static_cast<char*>(data);
    for (size_t done = 0; done < bytes; done += kPiece) {
      const size_t piece = std::min(kPiece, bytes - done);
      if (rank_ != from) exchange(nullptr, 0, p + done, piece);
      if (at(rank_ + 1) != static_cast<size_t>(from)) exchange(p + done, piece, nullptr, 0);
    }
  }

  // Every rank adds up one part of the values, which has come round the ring; the sums then go round too.
  void sum(float* values, int64_t count) override {
    const int64_t each = (count + size_ - 1) / size_;
    const auto begin = [&](int part) { return std::min<int64_t>(at(part) * each, count); };
    const auto length = [&](int part) { return std::min<int64_t>((at(part) + 1) * each, count) - begin(part); };
    std::vector<float> received(each);
    for (int step = 0; step + 1 < size_; ++step) {
      const int out = rank_ - step, in = rank_ - step - 1;
      exchange(values + begin(out), length(out) * sizeof(float), received.data(), length(in) * sizeof(float));
      for (int64_t i = 0; i < length(in); ++i) values[begin(in) + i] += received[i];
    }
    for (int step = 0; step + 1 < size_; ++step) {
      const int out = rank_ + 1 - step, in = rank_ - step;
      exchange(values + begin(out), length(out) * sizeof(float), values + begin(in), length(in) * sizeof(float));
    }
  }

  void fail(const std::string& message) noexcept override { watch_->fail(message); }
  void check() override { watch_->check(); }
  bool lost_root() const override { return watch_->lost_root(); }
  void on_failure(std::function<void()> call) override { watch_->on_failure(std::move(call)); }

 private:
  size_t at(int rank) const { return static_cast<size_t>((rank % size_ + size_) % size_); }

  void exchange(const void* data, size_t bytes, void* received, size_t received_bytes) {
    watch_->check();
    const auto check = [&] { watch_->check(); };
    if (Socket::exchange(next_, data, bytes, before_, received, received_bytes, check)) return;
    // The connection has ended: the watch is about to hear why.
    const auto until = Socket::Clock::now() + kSilence;
    while (Socket::Clock::now() < until) {
      watch_->check();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    throw CommError(name_ + ": the connection to a neighbouring rank has ended");
  }

  // What a rank of this job says of itself; nothing of a stranger.
  static std::optional<Hello> hear(const Socket& s, const Hello& own, Socket::Clock::time_point until) {
    Hello h;
    try {
      if (s.receive(&h, sizeof h, limit(until)) && std::memcmp(h.magic, kMagic, sizeof kMagic) == 0 &&
          std::memcmp(h.job, own.job, sizeof own.job) == 0)
        return h;
    } catch (const CommError&) {  // it says nothing in time
    }
    return {};
  }

  // Rank 0 hears of all, and tells them where the others are.
  std::vector<Socket> meet_all(const Launch& launch, const Hello& own, std::vector<Place>& places,
                               Socket::Clock::time_point until) const {
    const Socket door = Socket::listen(launch.port, launch.ports);
    std::vector<Socket> ranks(size_ - 1);
    // Nobody is to wait for a meeting that will not be. others: that may come.
    const auto end = [&](const std::string& why, const Socket& latest, int others) {
      Answer a;
      put(a.refusal, why);
      const auto tell = [&](const Socket& s) {
        try {
          if (s.open() && s.send(&a, sizeof a, limit(Socket::Clock::now() + std::chrono::seconds(1)))) --others;
        } catch (const CommError&) {  // it does not listen, and will hear of the end of this process
        }
      };
      tell(latest);
      for (const Socket& s : ranks) tell(s);
      // Who comes late, or waits between two attempts, would find a closed door and knock until its time is up.
      for (const auto last = Socket::Clock::now() + kLate; others > 0 && Socket::Clock::now() < last;)
        if (const Socket s = door.accept(last); s.open() && hear(s, own, last)) tell(s);
      throw CommError(why);
    };
    put(places[0].address, launch.address);
    put(places[0].host, own.host);
    places[0].port = own.port;
    for (int missing = size_ - 1; missing > 0;) {
      Socket s = door.accept(std::min(until, Socket::Clock::now() + std::chrono::milliseconds(200)));
      if (!s.open()) {
        if (launch.while_meeting) launch.while_meeting();
        if (Socket::Clock::now() < until) continue;
        std::string names;
        for (int r = 1; r < size_; ++r)
          if (!ranks[r - 1].open()) names += (names.empty() ? "" : ", ") + std::to_string(r);
        end("rank 0 of " + std::to_string(size_) + " waited " + std::to_string(kMeeting.count()) + " s at " +
                launch.address + ":" + std::to_string(door.port()) + ": did not come: rank " + names +
                "; is it running, and does it reach that address (MASTER_ADDR, MASTER_PORT)?",
            s, 0);
      }
      const auto heard = hear(s, own, std::min(until, Socket::Clock::now() + std::chrono::seconds(5)));
      if (!heard) continue;
      const Hello& h = *heard;
      if (h.size != size_ || h.rank < 1 || h.rank >= size_ || ranks[h.rank - 1].open())
        end("rank " + std::to_string(h.rank) + " of " + std::to_string(h.size) + " on " + h.host +
                " came to a job of " + std::to_string(size_) + " ranks" +
                (h.size == size_ ? " where that rank is there already" : "") +
                "; each process needs its own RANK, and all the same WORLD_SIZE",
            s, std::max(size_, h.size) - 1);
      Place& place = places[h.rank];
      const std::string peer = s.peer();
      put(place.address, peer.starts_with("127.") ? launch.address : peer);
      put(place.host, h.host);
      place.port = h.port;
      ranks[h.rank - 1] = std::move(s);
      --missing;
    }
    const Answer welcome;
    for (const Socket& s : ranks)
      if (s.send(&welcome, sizeof welcome, limit(until)))
        s.send(places.data(), places.size() * sizeof(Place), limit(until));
    return ranks;
  }

  std::vector<Socket> meet_root(const Launch& launch, const Hello& own, std::vector<Place>& places,
                                Socket::Clock::time_point until) const {
    std::string unknown;  // that name, as it may be for a while
    for (int i = 0; Socket::Clock::now() < until; i = (i + 1) % launch.ports) {
      Socket s = Socket::connect(launch.address, launch.port + i, until, &unknown);
      // Another program may have that port: only rank 0 answers.
      Answer answer;
      if (s.open() && s.send(&own, sizeof own, limit(until)) && s.receive(&answer, sizeof answer, limit(until))) {
        if (answer.refusal[0] != 0) throw CommError("rank 0 ends the meeting: " + std::string(answer.refusal));
        if (s.receive(places.data(), places.size() * sizeof(Place), limit(until))) {
          std::vector<Socket> connections;
          connections.push_back(std::move(s));
          return connections;
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(i + 1 == launch.ports ? 100 : 1));
    }
    throw CommError("rank " + std::to_string(rank_) + " of " + std::to_string(size_) + " waited " +
                    std::to_string(kMeeting.count()) + " s for rank 0 at " + launch.address + ":" +
                    std::to_string(launch.port) + (unknown.empty() ? "" : ", a name that " + unknown) +
                    "; is it running, and is that address right (MASTER_ADDR, MASTER_PORT)?");
  }

  void join_ring(const Socket& ring, const Hello& own, const std::vector<Place>& places,
                 Socket::Clock::time_point until) {
    const Place& to = places[at(rank_ + 1)];
    next_ = Socket::connect(to.address, to.port, until);
    if (!next_.open() || !next_.send(&own, sizeof own, limit(until)))
      throw CommError(name_ + ": cannot connect to " + rank_name(static_cast<int>(at(rank_ + 1)), size_, to.host) +
                      " at " + to.address + ":" + std::to_string(to.port) +
                      "; ranks talk to their neighbours at ports that the system chooses");
    while (!before_.open()) {
      Socket s = ring.accept(until);
      if (!s.open()) throw CommError(name_ + ": the rank before it did not connect");
      const auto h = hear(s, own, until);
      if (h && static_cast<size_t>(h->rank) == at(rank_ - 1)) before_ = std::move(s);
    }
  }

  static Socket::Check limit(Socket::Clock::time_point until) {
    return [until] {
      if (Socket::Clock::now() > until) throw CommError("another rank does not answer");
    };
  }

  int rank_, size_;
  std::string name_;
  Socket next_, before_;
  std::unique_ptr<Watch> watch_;
};

}  // namespace

std::unique_ptr<Communicator> connect_tcp(const Launch& launch) { return std::make_unique<Tcp>(launch); }

}  // namespace regolith
