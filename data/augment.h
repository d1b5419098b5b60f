// The options of an augmentation, whose struct the sampling kernel owns.
#pragma once

#include "engine/config/fields.h"
#include "kernels/sample.h"

namespace regolith::kernels {

constexpr std::array<const char*, 4> names_of(Flip) { return {"none", "horizontal", "vertical", "both"}; }
constexpr std::array<const char*, 4> names_of(Fill) { return {"reflect", "nearest", "constant", "wrap"}; }

template <class V>
void fields(V& v, Augment& s) {
  v("flip", s.flip, {.doc = "mirror at random"});
  v("zoom", s.zoom,
    {.doc = "relative, drawn from this range; a positive zoom shows more of the scene", .min = -0.99, .max = 10});
  v("translation", s.translation, {.doc = "up to this fraction of the size, either way", .min = 0, .max = 1});
  v("rotation", s.rotation,
    {.doc = "in turns, drawn from this range; positive is counter-clockwise", .min = -1, .max = 1});
  v("fill", s.fill, {.doc = "what lies outside of an image"});
  v("mask_fill", s.mask_fill, {.doc = "what lies outside of a mask; constant: mask_fill_value"});
  v("fill_value", s.fill_value, {.doc = "grey value outside of an image with fill: constant", .min = 0, .max = 255});
  v("mask_fill_value", s.mask_fill_value,
    {.doc = "id outside of a mask with mask_fill: constant: a class, or one without truth", .min = 0, .max = 255});
}

}  // namespace regolith::kernels
