// Which of several plans for the same result is run, and the file that remembers what was found by timing.
#pragma once

#include <functional>
#include <map>
#include <string>

namespace regolith {

// Milliseconds that one of `runs` runs of a plan takes; infinity where it does not run here.
using PlanTime = std::function<float(int plan, int runs)>;

// The first plan that runs; -1: none does.
int first_that_runs(int plans, const PlanTime& time);
// The fastest, but the first that runs where no other is faster by more than noise. Plans are timed in turns, after a
// warm-up: clocks that rise or fall meanwhile meet all of them.
int fastest_that_runs(int plans, const PlanTime& time);

// Plans that were found by timing, by request, in a file that all processes of a user share. What it holds can be found
// again: a file that cannot be read or written costs a line of notice, on stderr.
class PlanCache {
 public:
  // `folder`: where the file stands; "": nowhere. `device`: GPU and versions, whose plans these are.
  PlanCache(std::string folder, std::string device);
  std::string find(const std::string& request) const;  // "": not known
  void add(const std::string& request, const std::string& plan);
  static std::string user_folder();  // $XDG_CACHE_HOME/regolith, or ~/.cache/regolith; "": neither is known

 private:
  using Plans = std::map<std::string, std::map<std::string, std::string>>;  // by device and request
  Plans read() const;

  std::string folder_, path_, device_;
  std::map<std::string, std::string> plans_;  // of the device
};

}  // namespace regolith
