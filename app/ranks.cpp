#include "app/ranks.h"

#include <cstdio>
#include <optional>

#include "engine/base/error.h"
#include "engine/comm/launch.h"

namespace regolith {

void Ranks::join(std::unique_ptr<Communicator> communicator, int local_rank) {
  communicator_ = std::move(communicator);
  local_rank_ = local_rank;
  if (!communicator_->is_root() && std::freopen("/dev/null", "w", stdout) == nullptr)
    throw IoError("/dev/null: cannot be opened");
}

void Ranks::start(int size, char** argv) {
  const Launch launch = start_ranks(size, argv);
  started_ = launch.children;
  join(connect(launch), 0);
}

Ranks::~Ranks() {
  communicator_.reset();  // says goodbye
  end_ranks(started_);
}

int as_ranks(const std::function<int(Ranks&)>& body) {
  Ranks ranks;
  try {
    if (const std::optional<Launch> launch = launched()) ranks.join(connect(*launch), launch->local_rank);
    return body(ranks);
  } catch (const CommError&) {
    const Communicator* const c = ranks.communicator_.get();
    if (c == nullptr || c->is_root() || (c->rank() == 1 && c->lost_root())) throw;
    return 1;
  } catch (const std::exception& e) {
    if (ranks.communicator_ == nullptr || ranks.communicator_->size() == 1) throw;
    ranks.communicator_->fail(e.what());
    if (ranks.communicator_->is_root()) throw Error(ranks.communicator_->name() + ": " + e.what());
    return 1;
  }
}

}  // namespace regolith
