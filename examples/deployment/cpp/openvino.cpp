// Detect objects with a model that was exported with --format onnx or openvino, without PyTorch. How to build it: see
// Makefile.

#include <openvino/openvino.hpp>

#include "detector.h"

static Run load(const std::string& path) {
  ov::Core core;
  // Left alone, OpenVINO computes in bfloat16 where the CPU has it, which moves boxes by pixels.
  ov::CompiledModel compiled = core.compile_model(path, "CPU", ov::hint::inference_precision(ov::element::f32));
  return [compiled](Inputs& inputs, const Model& model, const Show& show) mutable {
    ov::InferRequest request = compiled.create_infer_request();
    const ov::Shape shape(inputs.shape.begin(), inputs.shape.end());
    request.set_tensor("images", ov::Tensor(ov::element::f32, shape, inputs.images.data()));
    request.set_tensor("image_sizes", ov::Tensor(ov::element::i64, {1, 2}, inputs.image_sizes.data()));
    if (model.has_threshold())
      request.set_tensor("score_threshold", ov::Tensor(ov::element::f32, {}, &inputs.score_threshold));
    request.infer();
    show({request.get_tensor("boxes").data<float>(), request.get_tensor("scores").data<float>(),
          request.get_tensor("classes").data<int64_t>(), request.get_tensor("count").data<int64_t>()[0]});
  };
}

int main(int argc, char** argv) { return detect(argc, argv, load); }
