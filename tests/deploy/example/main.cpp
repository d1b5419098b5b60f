// The example of the README: classes of an image from the share of each.
#include <regolith/segmenter.h>

#include <cstdio>
#include <exception>
#include <vector>

int main(int argc, char** argv) {
  try {
    if (argc != 4) throw std::invalid_argument("example RUN HEIGHT WIDTH < bytes of a grey image");
    const int height = std::stoi(argv[2]), width = std::stoi(argv[3]);
    std::vector<uint8_t> pixels(static_cast<size_t>(height) * width);  // (height, width)
    if (std::fread(pixels.data(), 1, pixels.size(), stdin) != pixels.size())
      throw std::invalid_argument("stdin ends before the image does");

    regolith::Segmenter segmenter({argv[1]});
    const regolith::Segmentation s = segmenter.predict({pixels.data(), height, width, 1});

    std::vector<int> counts(segmenter.class_names().size());
    for (const uint8_t id : s.ids) ++counts[id];
    for (size_t k = 0; k < counts.size(); ++k)
      std::printf("%s: %.1f%%\n", segmenter.class_names()[k].c_str(), 100.0 * counts[k] / s.ids.size());
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "example: %s\n", e.what());
    return 1;
  }
}
