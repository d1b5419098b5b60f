// What each node of a running program takes.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "engine/run/program.h"

namespace regolith {

double milliseconds(std::chrono::steady_clock::duration d);
std::string fixed(double x, int digits, const char* unit = "");  // of a table; 0 is empty

// Adds up what each node takes. The device is waited for around every op, so that a GPU's times are its own.
class NodeTimes : public RunObserver {
 public:
  struct Time {
    const Node* node;
    double ms[2] = {}, macs[2] = {}, bytes[2] = {};  // forward, backward
  };
  // element: bytes of one in a map.
  NodeTimes(DeviceStream& stream, const Graph& graph, size_t element)
      : stream_(stream), graph_(graph), element_(static_cast<double>(element)), wanted_(wanted_gradients(graph)) {}
  void begin(const Node& node, bool backward) override;
  void end(const Node& node, bool backward) override;
  std::vector<Time> times;  // in the order of the forward pass

 private:
  double bytes(const Node& node, bool backward) const;

  std::map<std::string, size_t> index_;
  DeviceStream& stream_;
  const Graph& graph_;
  double element_;
  std::vector<std::vector<bool>> wanted_;
  std::chrono::steady_clock::time_point began_;
};

}  // namespace regolith
