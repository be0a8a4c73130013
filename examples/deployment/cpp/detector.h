// What the programs of this folder share: reading an image and model.json, preparing the image, printing the objects.
// Standard C++ only.
//
// Images are PPM files, which need no library (`convert photo.jpg photo.ppm`, or Pillow's save). Of model.json only what
// is needed is found, by its name; a product would use a JSON library.

#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

struct Model {  // what model.json says
  std::string artifact;
  std::vector<std::string> inputs, outputs, classes;
  std::vector<int64_t> size;  // height and width of the model's input, empty where they vary
  double short_edge, long_edge;
  bool is_bgr;
  float score_threshold;

  bool has_threshold() const { return inputs.size() > 2; }
  int64_t output(const std::string& name) const {
    return std::find(outputs.begin(), outputs.end(), name) - outputs.begin();
  }
};

struct Image {
  int64_t height, width;
  std::vector<uint8_t> rgb;
};

struct Inputs {
  std::vector<float> images;         // [1, 3, h, w]
  std::vector<int64_t> shape;        // of images
  std::vector<int64_t> image_sizes;  // [1, 2]: height and width of what the image fills
  float score_threshold;
};

struct Outputs {  // of one image
  const float* boxes;  // [D, 4]
  const float* scores;
  const int64_t* classes;
  int64_t count;
};

using Show = std::function<void(const Outputs&)>;
using Run = std::function<void(Inputs&, const Model&, const Show&)>;
using Load = std::function<Run(const std::string& path)>;

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("There is no file " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The first value of that name: a number, a text without its quotes, or what stands between [ and ].
inline std::string value_of(const std::string& json, const std::string& name) {
  const std::string key = "\"" + name + "\":";
  const size_t found = json.find(key);
  if (found == std::string::npos) throw std::runtime_error("model.json has no " + name);
  size_t begin = json.find_first_not_of(" \n", found + key.size());
  const char* end = json[begin] == '"' ? "\"" : json[begin] == '[' ? "]" : ",}\n";
  if (*end != ',') ++begin;
  return json.substr(begin, json.find_first_of(end, begin) - begin);
}

inline std::vector<std::string> texts_of(const std::string& json, const std::string& name) {
  const std::string list = value_of(json, name);
  std::vector<std::string> texts;
  for (size_t begin = list.find('"'); begin != std::string::npos;) {
    size_t end = begin + 1;
    while (end < list.size() && list[end] != '"') end += list[end] == '\\' ? 2 : 1;
    texts.push_back(list.substr(begin + 1, end - begin - 1));
    begin = list.find('"', end + 1);
  }
  return texts;
}

inline Model read_model(const std::string& path) {
  const std::string json = read_file(path);
  const auto number = [&](const char* name) { return std::stod(value_of(json, name)); };
  if (number("layout") > 1) throw std::runtime_error(path + " has a newer layout than this program knows, 1");
  if (value_of(json, "output_layout") != "padded") throw std::runtime_error("export the model with --outputs padded");
  Model model;
  model.artifact = value_of(json, "artifact"), model.classes = texts_of(json, "classes");
  model.inputs = texts_of(json, "inputs"), model.outputs = texts_of(json, "outputs");
  int height = 0, width = 0;
  if (std::sscanf(value_of(json, "size").c_str(), "%d, %d", &height, &width) == 2) model.size = {height, width};
  model.short_edge = number("short_edge"), model.long_edge = number("long_edge");
  model.is_bgr = value_of(json, "channels") == "BGR";
  model.score_threshold = model.has_threshold() ? number("score_threshold") : 0;
  return model;
}

inline Image read_ppm(const std::string& path) {
  const std::string bytes = read_file(path);
  int width = 0, height = 0, most = 0, begin = 0;
  if (std::sscanf(bytes.c_str(), "P6 %d %d %d%n", &width, &height, &most, &begin) != 3 || most != 255)
    throw std::runtime_error(path + " is not a binary PPM image (P6) with values up to 255");
  const size_t length = size_t(width) * height * 3;
  if (bytes.size() < begin + 1 + length) throw std::runtime_error(path + " is cut off");
  return {height, width, {bytes.begin() + begin + 1, bytes.begin() + begin + 1 + length}};
}

inline std::vector<int64_t> resized_size(const Image& image, const Model& model) {
  const double height = image.height, width = image.width;
  double new_h = height, new_w = width;
  if (model.short_edge > 0) {
    const double scale = model.short_edge / std::min(height, width);
    new_h = height < width ? model.short_edge : scale * height;
    new_w = height < width ? scale * width : model.short_edge;
    const double longest = std::max(new_h, new_w);
    if (model.long_edge > 0 && longest > model.long_edge) {
      new_h *= model.long_edge / longest;
      new_w *= model.long_edge / longest;
    }
  }
  const auto whole = [](double x) { return std::max(int64_t(x + 0.5), int64_t(1)); };
  std::vector<int64_t> size{whole(new_h), whole(new_w)};
  if (!model.size.empty() && (size[0] > model.size[0] || size[1] > model.size[1])) {  // shrink it until it fits
    const double scale = std::min(model.size[0] / height, model.size[1] / width);
    size = {whole(height * scale), whole(width * scale)};
  }
  return size;
}

// Resize along one axis as Pillow's bilinear filter does, with weights in units of 2 ** -22. The pixels of the axis are
// `step` bytes apart, and its `lines` begin `stride` bytes apart.
inline std::vector<uint8_t> resize_axis(
    const std::vector<uint8_t>& source, int64_t lines, int64_t size, int64_t new_size, int64_t stride, int64_t step) {
  const int64_t new_stride = step == 3 ? new_size * 3 : stride;
  std::vector<uint8_t> out(lines * new_size * 3);
  const double scale = double(size) / new_size, support = std::max(scale, 1.0);
  for (int64_t i = 0; i < new_size; ++i) {
    const double center = (i + 0.5) * scale;
    const int64_t first = std::max(int64_t(center - support + 0.5), int64_t(0));
    const int64_t last = std::min(int64_t(center + support + 0.5), size);
    std::vector<double> raw;
    double total = 0;
    for (int64_t k = first; k < last; ++k) {
      raw.push_back(std::max(1 - std::abs((k - center + 0.5) * (1 / support)), 0.0));
      total += raw.back();
    }
    for (int64_t line = 0; line < lines; ++line)
      for (int64_t channel = 0; channel < 3; ++channel) {
        int64_t sum = 1 << 21;
        for (int64_t k = first; k < last; ++k)
          sum += source[line * stride + k * step + channel] * int64_t(raw[k - first] / total * (1 << 22) + 0.5);
        out[line * new_stride + i * step + channel] = uint8_t(std::min<int64_t>(sum >> 22, 255));
      }
  }
  return out;
}

inline Inputs prepare(const Image& image, const Model& model) {
  const std::vector<int64_t> size = resized_size(image, model), room = model.size.empty() ? size : model.size;
  std::vector<uint8_t> rgb = image.rgb;
  if (size[1] != image.width) rgb = resize_axis(rgb, image.height, image.width, size[1], image.width * 3, 3);
  if (size[0] != image.height) rgb = resize_axis(rgb, size[1], image.height, size[0], 3, size[1] * 3);
  Inputs inputs{std::vector<float>(3 * room[0] * room[1]), {1, 3, room[0], room[1]}, size, model.score_threshold};
  for (int64_t channel = 0; channel < 3; ++channel)
    for (int64_t y = 0; y < size[0]; ++y)
      for (int64_t x = 0; x < size[1]; ++x)
        inputs.images[(channel * room[0] + y) * room[1] + x] =
            rgb[(y * size[1] + x) * 3 + (model.is_bgr ? 2 - channel : channel)];
  return inputs;
}

// One line for each object: name, score, x1, y1, x2, y2 in pixels of the image.
inline void print_objects(const Outputs& found, const Image& image, const Inputs& inputs, const Model& model) {
  const float end[2] = {float(image.width), float(image.height)};
  const float scale[2] = {
      float(double(image.width) / inputs.image_sizes[1]), float(double(image.height) / inputs.image_sizes[0])};
  for (int64_t i = 0; i < found.count; ++i) {
    float box[4];
    for (int k = 0; k < 4; ++k) box[k] = std::clamp(found.boxes[i * 4 + k] * scale[k % 2], 0.0f, end[k % 2]);
    if (!(box[2] > box[0] && box[3] > box[1])) continue;  // nothing of it is inside the image
    const int64_t label = found.classes[i];
    const bool is_named = label < int64_t(model.classes.size());
    const std::string name = is_named ? model.classes[label] : "class " + std::to_string(label);
    std::printf("%s\t%.6f\t%.4f\t%.4f\t%.4f\t%.4f\n", name.c_str(), found.scores[i], box[0], box[1], box[2], box[3]);
  }
}

// The body of main(): `load` makes the function that runs the model of a file.
inline int detect(int argc, char** argv, const Load& load) {
  if (argc < 3) {
    std::cerr << "usage: " << argv[0] << " FOLDER_OF_THE_MODEL photo.ppm [a library with operators]\n";
    return 2;
  }
  try {
    // torchvision::roi_align and torchvision::nms register themselves when the library is loaded.
    if (argc > 3 && !dlopen(argv[3], RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
    const std::string folder = std::string(argv[1]) + "/";
    const Model model = read_model(folder + "model.json");
    const Image image = read_ppm(argv[2]);
    Inputs inputs = prepare(image, model);
    load(folder + model.artifact)(inputs, model, [&](const Outputs& found) { print_objects(found, image, inputs, model); });
  } catch (const std::exception& error) {
    const std::string text = error.what();  // of PyTorch with a trace, line after line
    std::cerr << "error: " << text.substr(0, text.find('\n')) << "\n";
    return 1;
  }
  return 0;
}
