#include "data/pseudo.h"

#include "engine/base/error.h"
#include "engine/base/text.h"
#include "kernels/augment_options.h"

namespace regolith {

void append_unlabelled(Dataset& data, ImageSource& images) {
  const int64_t count = images.count();
  data.images.reserve(data.images.size() + count * data.image_bytes());
  for (int64_t i = 0; i < count; ++i) {
    const NamedImage image = images.read(i);
    if (image.height != data.height || image.width != data.width || image.channels != data.channels)
      throw DataError("data.pseudo: image " + image.name + " is " +
                      size_text({image.height, image.width, image.channels}) + "; expected " +
                      size_text({data.height, data.width, data.channels}) + ", as the images with truth");
    data.images.insert(data.images.end(), image.pixels.begin(), image.pixels.end());
    data.source.push_back(i);
    if (!data.names.empty()) data.names.push_back(image.name);
    if (!data.part.empty()) data.part.push_back(Part::none);
  }
  data.masks.resize(data.masks.size() + count * data.mask_bytes(), kernels::kAbsentClass);
  data.count += count;
  data.unlabelled += count;
}

}  // namespace regolith
