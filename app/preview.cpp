#include "app/preview.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "app/command_line.h"
#include "engine/base/text.h"
#include "engine/report/panel.h"

namespace regolith {

std::string describe(const kernels::AugmentDraw& d, const std::array<std::string, 2>& partners) {
  std::vector<std::string> words;
  const auto add = [&](bool is, const std::string& text) {
    if (is) words.push_back(text);
  };
  const kernels::Moves& m = d.moves;
  add(m.flip_x, "flipped");
  add(m.flip_y, "upside down");
  add(m.zoom != 1, format("zoom %.2f", m.zoom));
  add(m.shift_x != 0 || m.shift_y != 0, format("moved %ld, %ld", std::lround(m.shift_x), std::lround(m.shift_y)));
  add(m.turns != 0, format("turned %ld deg", std::lround(360 * m.turns)));
  add(m.shear_x != 0 || m.shear_y != 0, format("shear %.2f, %.2f", m.shear_y, m.shear_x));
  add(m.crop != 1, format("crop %.0f%%", 100 * m.crop));
  add(d.elastic, "elastic");
  add(d.partners.cutmix, "cutmix with " + partners[0]);
  add(d.partners.paste, "paste of " + partners[1]);
  add(d.brightness != 0, format("brightness %+.0f", d.brightness));
  add(d.contrast != 1, format("contrast %.2f", d.contrast));
  add(d.gamma != 1, format("gamma %.2f", d.gamma));
  add(d.noise > 0, format("noise %.0f", d.noise));
  add(d.blur > 0, format("blur %.1f", d.blur));
  add(d.cutout, "cutout");
  return words.empty() ? "as it is" : join(words);
}

void write_preview(Experiment& experiment, const PreviewOptions& options) {
  refuse_existing(options.output, options.force);
  const ExperimentData& data = experiment.data();
  const Dataset& images = data.images;
  const kernels::Augment& augment = data.augment;
  std::vector<float> losses;
  if (experiment.config.data.hard_examples) losses.assign(images.count, std::numeric_limits<float>::quiet_NaN());
  const std::vector<int32_t> entries = experiment.order(0, losses);
  const int count = static_cast<int>(std::min<int64_t>(options.count, std::ssize(entries)));
  const uint64_t seed = experiment.config.run.seed;

  Device& device = experiment.device();
  const auto stream = device.make_stream();
  DeviceData on_device(device, images.view(), count, experiment.config.data.streaming, partners_of(augment));
  Order order, paste;
  on_device.set(order, entries, *stream);
  if (!data.paste_rows.empty()) on_device.set(paste, data.paste_rows, *stream);
  const Mixing mixing{augment, seed, paste};
  on_device.prefetch(order, 0, count, *stream, &mixing);
  const int64_t values = count * images.image_bytes(), pixels = count * images.mask_bytes();
  DeviceBuffer grey(device, values * sizeof(float)), labels(device, pixels);
  kernels::SampleBatch call{};
  on_device.bind(call, order, count, 1);
  call.seed = seed;
  call.augment = augment;
  call.paste_rows = paste.entries.as<int32_t>();
  call.paste_count = static_cast<int>(paste.count);
  call.divisor = 1;
  call.x = {grey.as(), count, images.height, images.width, images.channels, images.channels, DType::f32};
  call.labels = labels.as<uint8_t>();
  kernels::sample_batch(*stream, call);
  std::vector<float> shown(values);
  std::vector<uint8_t> bytes(values), classes(pixels);
  device.download(shown.data(), grey.as(), grey.bytes(), *stream);
  device.download(classes.data(), labels.as(), labels.bytes(), *stream);
  stream->synchronize();
  std::transform(shown.begin(), shown.end(), bytes.begin(),
                 [](float v) { return static_cast<uint8_t>(std::lround(std::clamp(v, 0.0f, 255.0f))); });

  std::vector<SheetRow> rows;
  for (int i = 0; i < count; ++i) {
    const int64_t row = entries[i] >> 1;
    const uint8_t* const mask = images.masks.empty() ? nullptr : images.mask(row);
    SheetRow& sheet = rows.emplace_back();
    sheet.tiles = {{images.image(row)},
                   {mask, true},
                   {bytes.data() + i * images.image_bytes()},
                   {mask == nullptr ? nullptr : classes.data() + i * images.mask_bytes(), true}};
    kernels::AugmentDraw draw;
    std::array<std::string, 2> partners;
    if ((entries[i] & 1) != 0) {
      draw = draw_augment(augment, images.height, images.width, {seed, 0, static_cast<uint32_t>(i)});
      partners[0] =
          images.name(entries[kernels::chosen(draw.partners.cutmix_word, static_cast<int>(entries.size()))] >> 1);
      if (draw.partners.paste)
        partners[1] = images.name(data.paste_rows[kernels::chosen(draw.partners.paste_word, call.paste_count)]);
    }
    sheet.caption = images.name(row) + ": " + describe(draw, partners);
  }
  const std::vector<std::string> titles{"image", "truth", "as it trains", "its truth"};
  const std::vector<LegendEntry> legend = legend_of(experiment.class_names(), experiment.class_colours());
  write_png(options.output, draw_sheet(titles, rows, images.height, images.width, images.channels, legend));
  if (!experiment.config.data.augment && !experiment.config.data.oversample && !experiment.config.data.balance)
    std::puts("data.augment is off: images train as they are stored");
  std::printf("%s: the first %d of the %zu images of an epoch\n", options.output.c_str(), count, entries.size());
}

}  // namespace regolith
