// Weights and training state of a network, to and from checkpoints. Tensors are named by the parameters' paths; the
// optimizer's moments stand under "optimizer/0/" and "optimizer/1/", their moving average under "optimizer/ema/".
#pragma once

#include "engine/io/safetensors.h"
#include "engine/run/network.h"
#include "engine/train/trainer.h"

namespace regolith {

bool is_moment(const std::string& tensor);  // or an average: beside the weights, in a checkpoint of a training

// In fp32, with the model's parameter count in the metadata. The weights are read as the checkpoint is saved: network
// and stream must live until then.
Checkpoint save_weights(Network& network, DeviceStream& stream);
// Throws CheckpointError where the checkpoint lacks a parameter of the network, has one of another shape, or has one
// that the network does not know.
void check_parameters(Network& network, const Checkpoint& checkpoint);
// Checks first, and then changes nothing where that throws. A network without training reads the values as it packs
// them, from the file if they were left there: what a tensor's source reads must live as long as the network.
void load_weights(Network& network, const Checkpoint& checkpoint, DeviceStream& stream);

// The same with the moments, the optimizer's state, and the moving average of the weights. Where the trainer has one
// and the checkpoint has not, it begins at the weights.
Checkpoint save_training(Network& network, Trainer& trainer);
void load_training(Network& network, Trainer& trainer, const Checkpoint& checkpoint);

}  // namespace regolith
