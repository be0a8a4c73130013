// Detect objects with a model that was exported with --format torchscript. How to build it: see Makefile.

#include <torch/script.h>

#include "tensors.h"

static Run load(const std::string& path) {
  return [module = torch::jit::load(path)](Inputs& inputs, const Model& model, const Show& show) mutable {
    c10::InferenceMode no_gradients;
    const std::vector<at::Tensor> tensors = to_tensors(inputs, model);
    const torch::jit::IValue result = module.forward({tensors.begin(), tensors.end()});
    std::vector<at::Tensor> outputs;
    for (const auto& value : result.toTupleRef().elements()) outputs.push_back(value.toTensor());
    show_tensors(outputs, model, show);
  };
}

int main(int argc, char** argv) { return detect(argc, argv, load); }
