// What a network begins its training with: weights of another run or framework, and those that stay as they are.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/config/fields.h"
#include "engine/io/safetensors.h"
#include "engine/run/network.h"

namespace regolith {

struct InitSpec {
  enum class Match { strict, shape };
  FilePath from;  // a .safetensors, or a run's folder
  Match match = Match::strict;
  std::vector<std::string> freeze;
};
constexpr std::array<const char*, 2> names_of(InitSpec::Match) { return {"strict", "shape"}; }
template <class V>
void fields(V& v, InitSpec& s) {
  v("from", s.from,
    {.doc = "weights to begin with: a .safetensors, or the folder of a run (its best.safetensors); none: all are made "
            "from run.seed. Not read on --resume",
     .word = "none"});
  v("match", s.match,
    {.doc = "strict: every parameter is there in its shape, and no other; shape: what has the same name and shape is "
            "taken, convolutions of the image are fitted to its channels, the rest is made from run.seed"});
  v("freeze", s.freeze,
    {.doc =
         "patterns of parameters that are not trained: [e1/*, '*/bias'], in quotes where * comes first; it stands for "
         "any text, slashes too. A batch norm whose gamma and beta are frozen runs by its running statistics, which "
         "stand still"});
}

// The trainable parameters of the graph that the patterns name (fnmatch; * matches slashes too). Throws OptionError of
// the section "train" for a pattern that names none, and where nothing is left to train.
std::set<std::string> frozen_parameters(const Graph& graph, const std::vector<std::string>& patterns);

// Which weights of a network come from a checkpoint, and how. Statistics of norms are weights here.
class InitialWeights {
 public:
  // Looks at names and shapes alone. Throws CheckpointError where `match` is strict and something differs, where
  // nothing can be taken, and for a tensor that is not fp32.
  InitialWeights(Network& network, Checkpoint checkpoint, InitSpec::Match match);

  // After the network's fresh weights were made: overwrites those that are taken. Throws IoError.
  void apply(Network& network, DeviceStream& stream) const;

  std::string summary() const;  // a few lines; long lists by the first part of the names
  std::string list() const;     // a line for every parameter of the network, and for those of the file that are left

 private:
  enum class Origin { taken, adapted, other_shape, missing };
  static constexpr std::pair<Origin, const char*> kOrigins[] = {
      {Origin::taken, "taken"},
      {Origin::adapted, "taken, summed over its channels and shared out"},
      {Origin::other_shape, "made anew, of another shape"},
      {Origin::missing, "made anew, not there"}};
  struct Item {
    std::string name;
    Origin origin;
    std::string shapes = "";  // "3 -> 1 channels", "(5, 1, 1, 32) there, (3, 1, 1, 32) here"
  };
  std::vector<std::string> names(Origin origin) const;  // with the shapes
  void compare(const Parameters::Entry& entry, bool reads_image);

  Checkpoint checkpoint_;
  std::vector<Item> items_;        // in the order of the network's parameters
  std::vector<std::string> left_;  // of the checkpoint: names that the network does not know
};

// A convolution's kernel (K,R,S,a) for `channels` input channels: each is the sum of the a there over `channels`. An
// image whose channels are all the same thus gives what it gave.
std::vector<float> with_channels(const std::vector<float>& kernel, int64_t before, int64_t channels);

// "taken: 40 (e1 12, e2 12, ...)", "frozen: e1/1/conv/kernel, e1/1/conv/bias".
std::string listed(const std::string& what, const std::vector<std::string>& names);

}  // namespace regolith
