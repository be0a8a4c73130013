// Detect objects with a model that was exported with --format aoti. How to build it: see Makefile.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <memory>

#include "tensors.h"

static Run load(const std::string& path) {
  auto loader = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
  return [loader](Inputs& inputs, const Model& model, const Show& show) {
    c10::InferenceMode no_gradients;
    show_tensors(loader->run(to_tensors(inputs, model)), model, show);
  };
}

int main(int argc, char** argv) { return detect(argc, argv, load); }
