// The options of an augmentation, whose struct the sampling kernel owns, and the presets.
#pragma once

#include "engine/config/fields.h"
#include "kernels/augment_options.h"

namespace regolith::kernels {

constexpr std::array<const char*, 3> names_of(AugmentPreset) { return {"none", "light", "massive"}; }
constexpr std::array<const char*, 4> names_of(Flip) { return {"none", "horizontal", "vertical", "both"}; }
constexpr std::array<const char*, 4> names_of(Fill) { return {"reflect", "nearest", "constant", "wrap"}; }
constexpr std::array<const char*, 5> names_of(MaskFill) { return {"reflect", "nearest", "constant", "wrap", "ignore"}; }
constexpr std::array<const char*, 2> names_of(Cutout::MaskRule) { return {"keep", "ignore"}; }

inline constexpr int kAutoClass = -1;  // of copy_paste: whoever knows the training set settles it

inline Augment augment_of(AugmentPreset preset) {
  Augment a;
  a.preset = preset;
  if (preset == AugmentPreset::none) return a;
  a.flip = Flip::horizontal;
  a.zoom = a.rotation = {-0.1f, 0.1f};
  a.translation = {0.1f, 0.1f};
  if (preset == AugmentPreset::light) return a;
  a.zoom = {-0.25f, 0.25f};
  a.shear = {0.1f, 0.1f};
  a.brightness = a.contrast = {-0.2f, 0.2f};
  a.gamma = {0.7f, 1.4f};
  a.probability = {.shear = 0.3f, .brightness = 0.5f, .contrast = 0.5f, .gamma = 0.3f};
  a.crop = {true, {0.6f, 1}, 0.3f};
  a.elastic = {true, 8, 6, 0.3f};
  a.noise = {true, 0.05f, 0.3f};
  a.blur = {true, 1, 0.2f};
  a.cutout = {true, {0.02f, 0.15f}, -1, Cutout::MaskRule::keep, 0.3f};
  a.cutmix = {true, {0.1f, 0.4f}, 0.3f};
  a.copy_paste = {true, kAutoClass, 0.5f};
  return a;
}

template <class V>
void fields(V& v, Probabilities& s) {
  v("flip", s.flip, {.doc = "of each way that flip names", .min = 0, .max = 1});
  v("zoom", s.zoom, {.doc = "that an image is zoomed", .min = 0, .max = 1});
  v("translation", s.translation, {.doc = "that it is moved", .min = 0, .max = 1});
  v("rotation", s.rotation, {.doc = "that it is turned", .min = 0, .max = 1});
  v("shear", s.shear, {.doc = "that it is sheared", .min = 0, .max = 1});
  v("brightness", s.brightness, {.doc = "that its brightness is changed", .min = 0, .max = 1});
  v("contrast", s.contrast, {.doc = "that its contrast is changed", .min = 0, .max = 1});
  v("gamma", s.gamma, {.doc = "that its gamma is changed", .min = 0, .max = 1});
}
template <class V>
void fields(V& v, Crop& s) {
  v("size", s.size, {.doc = "share of height and width that is left, drawn from this range", .min = 0.05, .max = 1});
  v("probability", s.probability, {.doc = "that an image is cropped", .min = 0, .max = 1});
}
template <class V>
void fields(V& v, Elastic& s) {
  v("alpha", s.alpha,
    {.doc = "strength: displacements have a standard deviation of 0.28 alpha pixels", .min = 0, .max = 1000});
  v("sigma", s.sigma, {.doc = "smoothness: pixels over which the displacements go together", .min = 2, .max = 200});
  v("probability", s.probability, {.doc = "that an image is deformed", .min = 0, .max = 1});
}
template <class V>
void fields(V& v, Noise& s) {
  v("std", s.std,
    {.doc = "standard deviation, drawn from 0 to this share of the range of grey levels", .min = 0, .max = 1});
  v("probability", s.probability, {.doc = "that an image gets noise", .min = 0, .max = 1});
}
template <class V>
void fields(V& v, Blur& s) {
  v("sigma", s.sigma, {.doc = "of the Gaussian, drawn from 0 to this, in pixels", .min = 0, .max = kMostBlur});
  v("probability", s.probability, {.doc = "that an image is blurred", .min = 0, .max = 1});
}
template <class V>
void fields(V& v, Cutout& s) {
  v("scale", s.scale,
    {.doc = "height and width of the box, of the image's: roots of numbers drawn from this range", .min = 0, .max = 1});
  v("value", s.value,
    {.doc = "grey value of the box; mean: of the image", .min = 0, .max = 255, .word = "mean", .word_value = -1});
  v("mask", s.mask, {.doc = "keep: the classes under the box are learnt; ignore: its pixels have no truth"});
  v("probability", s.probability, {.doc = "that a box is cut out of an image", .min = 0, .max = 1});
}
template <class V>
void fields(V& v, CutMix& s) {
  v("area", s.area,
    {.doc = "share of the image that a box of another training image covers, drawn from this range",
     .min = 0,
     .max = 1});
  v("probability", s.probability, {.doc = "that an image gets such a box, with its classes", .min = 0, .max = 1});
}
template <class V>
void fields(V& v, CopyPaste& s) {
  v("class", s.class_id,
    {.doc = "whose pixels are pasted, out of training images that hold it; auto: that of data.oversample, else the "
            "rarest of the training set that the loss learns",
     .min = 0,
     .max = 254,
     .word = "auto",
     .word_value = kAutoClass});
  v("probability", s.probability, {.doc = "that an image gets another one's pixels of the class", .min = 0, .max = 1});
}

template <class V>
void fields(V& v, Augment& s) {
  v("preset", s.preset,
    {.doc = "what the keys beside it start from. light: flip, zoom, translation and rotation of 0.1. massive: stronger "
            "ones, and some of everything else"});
  v.after_reading([&] { s = augment_of(s.preset); });
  v("flip", s.flip, {.doc = "mirror at random"});
  v("zoom", s.zoom,
    {.doc = "relative, drawn from this range; a positive zoom shows more of the scene", .min = -0.99, .max = 10});
  v("translation", s.translation, {.doc = "up to this fraction of the size, either way", .min = 0, .max = 1});
  v("rotation", s.rotation,
    {.doc = "in turns, drawn from this range; positive is counter-clockwise", .min = -1, .max = 1});
  v("shear", s.shear,
    {.doc = "columns slide by up to the first times x, rows by up to the second times y, either way",
     .min = 0,
     .max = 1});
  v("crop", s.crop, {.doc = "a part of the image, enlarged to its size"});
  v("elastic", s.elastic, {.doc = "smooth random displacements"});
  v("brightness", s.brightness,
    {.doc = "added, drawn from this range, as a share of the range of grey levels", .min = -1, .max = 1});
  v("contrast", s.contrast,
    {.doc = "1 + a number of this range times the distance from the mean", .min = -1, .max = 10});
  v("gamma", s.gamma, {.doc = "exponent of grey levels between 0 and 1, drawn from this range", .min = 0.1, .max = 10});
  v("noise", s.noise, {.doc = "Gaussian noise"});
  v("blur", s.blur, {.doc = "Gaussian blur"});
  v("cutout", s.cutout, {.doc = "a box of one grey value"});
  v("cutmix", s.cutmix, {.doc = "a box of another image of the training set"});
  v("copy_paste", s.copy_paste, {.doc = "regions of a class, such as big rocks, of other training images"});
  v("probability", s.probability, {.doc = "of what is given by a number alone; for each image by itself"});
  v("fill", s.fill, {.doc = "what lies outside of an image"});
  v("mask_fill", s.mask_fill,
    {.doc = "what lies outside of a mask; constant: mask_fill_value; ignore: pixels without truth"});
  v("fill_value", s.fill_value, {.doc = "grey value outside of an image with fill: constant", .min = 0, .max = 255});
  v("mask_fill_value", s.mask_fill_value,
    {.doc = "id outside of a mask with mask_fill: constant: a class, or one without truth", .min = 0, .max = 255});
}

}  // namespace regolith::kernels
