// What an augmentation does to a picture and its mask. One map from output to input moves the picture, which is read
// once; in this order:
//
//   1. The picture is flipped, zoomed, translated, rotated, sheared, cropped and resized, and elastically deformed.
//      Image bilinear, mask nearest (halves away from zero). The picture is extended without end as `fill` says, and
//      then interpolated.
//   2. Parts of a second picture take its place: a box (cutmix), then the regions of a class (copy_paste). A partner
//      has a map of its own, drawn from the options of 1; the elastic field is that of the picture it comes into.
//   3. Brightness, contrast, gamma, noise, blur, all in grey levels of 0 to 255.
//   4. A box is cut out (cutout).
//
// Mixing stands before 3, so that what is pasted has the light and the grain of the picture around it.
//
// As Keras 3 has them, given the same numbers: RandomFlip, RandomZoom, RandomTranslation, RandomRotation (about
// ((W-1)/2, (H-1)/2)), RandomShear (about the corner), RandomBrightness, RandomContrast, RandomErasing, which
// tests/kernels/test_augment_keras.cpp holds to what Keras printed; by their formulas CutMix with factor 1, and
// RandomCrop with Resizing. Different:
//   - elastic: Keras blurs normal noise by a Gaussian. Here a cubic B-spline takes the Gaussian's place, over normal
//     numbers on a grid of round(sqrt(3) sigma) pixels, whose variance is the same: a field of the same deviation,
//     alpha / sqrt(4 pi), and nearly the same correlation, of which only the grid must be drawn. It does not fade at
//     the edge. (P. Simard, D. Steinkraus, J. Platt: "Best practices for convolutional neural networks", 2003.)
//   - crop: the part's place and size are not rounded to pixels, and its edge is interpolated with what lies beyond it.
//   - contrast: about the mean of the stored picture, brightened, not of the moved one, which nobody knows before the
//     last of its pixels is made. The same where nothing moves.
//   - blur: a kernel of ceil(3 sigma) pixels each way, reflected at the edge, where Keras lets black come in.
//   - noise, gamma, copy_paste (G. Ghiasi et al., "Simple copy-paste is a strong data augmentation method for instance
//     segmentation", 2021) have no layer in Keras that treats masks.
#pragma once

#include <cstdint>

namespace regolith::kernels {

inline constexpr uint8_t kAbsentClass = 255;  // the label of pixels that no loss and no score counts

enum class Fill : int {
  reflect,   // d c b a | a b c d | d c b a
  nearest,   // a a a a | a b c d | d d d d
  constant,  // k k k k | a b c d | k k k k
  wrap,      // a b c d | a b c d | a b c d
};
enum class MaskFill : int { reflect, nearest, constant, wrap, ignore };  // ignore: kAbsentClass, not to be learnt

enum class Flip : int { none, horizontal, vertical, both };
struct Interval {
  float low = 0, high = 0;
};
struct Extent {
  float height = 0, width = 0;
};
struct Bounds {
  float low = 1, high = 1;
};

// How often an operation is applied that is given by a number alone.
struct Probabilities {
  float flip = 0.5f, zoom = 1, translation = 1, rotation = 1, shear = 1, brightness = 1, contrast = 1, gamma = 1;
};
struct Crop {
  bool on = false;
  Bounds size{0.6f, 1};  // share of height and width that is left, and enlarged
  float probability = 0.5f;
};
struct Elastic {
  bool on = false;
  float alpha = 8, sigma = 6;  // pixels: displacements of deviation 0.28 alpha, alike within about 2 sigma
  float probability = 0.5f;
};
struct Noise {
  bool on = false;
  float std = 0.05f;  // its deviation is drawn from U(0, std) of the range of grey levels
  float probability = 0.5f;
};
struct Blur {
  bool on = false;
  float sigma = 1;  // drawn from U(0, sigma) pixels
  float probability = 0.5f;
};
inline constexpr float kMostBlur = 3;  // sigma
struct Cutout {
  enum class MaskRule : int { keep, ignore };
  bool on = false;
  Bounds scale{0.02f, 0.33f};      // the height is sqrt(U) of the picture's, and so is the width
  float value = -1;                // grey level of the box; below 0: the picture's mean
  MaskRule mask = MaskRule::keep;  // ignore: the box is not to be learnt
  float probability = 0.5f;
};
struct CutMix {
  bool on = false;
  Bounds area{0.1f, 0.5f};  // of the box, of the picture's: the sides are its root
  float probability = 0.5f;
};
struct CopyPaste {
  bool on = false;
  int class_id = -1;  // -1: not settled yet, nothing is pasted
  float probability = 0.5f;
};

enum class AugmentPreset { none, light, massive };

struct Augment {
  AugmentPreset preset = AugmentPreset::none;  // known to those who read options
  Flip flip = Flip::none;                      // left to right, upside down
  Interval zoom = {};                          // scale in U(1 + low, 1 + high); above 1 zooms out
  Extent translation = {};                     // in U(-t, t) of the height and width; positive moves down and right
  Interval rotation = {};                      // in U(low, high) turns; positive counter-clockwise
  Extent shear = {};                           // height: input y = y + U(-s, s) x; width: input x = x + U(-s, s) y
  Interval brightness = {};                    // added, in U(low, high) of the range of grey levels; then clipped
  Interval contrast = {};                      // factor in U(1 + low, 1 + high); then clipped
  Bounds gamma = {};                           // grey = 255 (grey / 255)^U(low, high)
  Probabilities probability = {};
  Crop crop = {};
  Elastic elastic = {};
  Noise noise = {};
  Blur blur = {};
  Cutout cutout = {};
  CutMix cutmix = {};
  CopyPaste copy_paste = {};
  Fill fill = Fill::reflect;
  MaskFill mask_fill = MaskFill::reflect;
  float fill_value = 0;  // of `constant`, in grey levels
  int mask_fill_value = 0;
};

}  // namespace regolith::kernels
