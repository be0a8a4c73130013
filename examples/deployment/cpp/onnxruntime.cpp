// Detect objects with a model that was exported with --format onnx.
//
// Not built or run by the tests: none of the packages that they may install has the headers of onnxruntime, which come
// with its releases. `make onnxruntime ONNXRUNTIME=folder` builds it against an unpacked release.

#include <onnxruntime_cxx_api.h>

#include <memory>

#include "detector.h"

static Run load(const std::string& path) {
  auto environment = std::make_shared<Ort::Env>(ORT_LOGGING_LEVEL_WARNING, "detectron2");
  auto session = std::make_shared<Ort::Session>(*environment, path.c_str(), Ort::SessionOptions{});
  return [environment, session](Inputs& inputs, const Model& model, const Show& show) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const int64_t sizes_shape[2] = {1, 2};
    std::vector<Ort::Value> values;
    values.push_back(Ort::Value::CreateTensor<float>(
        memory, inputs.images.data(), inputs.images.size(), inputs.shape.data(), inputs.shape.size()));
    values.push_back(Ort::Value::CreateTensor<int64_t>(memory, inputs.image_sizes.data(), 2, sizes_shape, 2));
    if (model.has_threshold())
      values.push_back(Ort::Value::CreateTensor<float>(memory, &inputs.score_threshold, 1, nullptr, 0));
    const char* wanted[] = {"boxes", "scores", "classes", "count"};
    std::vector<const char*> names;
    for (const std::string& name : model.inputs) names.push_back(name.c_str());
    const auto outputs = session->Run(Ort::RunOptions{nullptr}, names.data(), values.data(), values.size(), wanted, 4);
    show({outputs[0].GetTensorData<float>(), outputs[1].GetTensorData<float>(), outputs[2].GetTensorData<int64_t>(),
          outputs[3].GetTensorData<int64_t>()[0]});
  };
}

int main(int argc, char** argv) { return detect(argc, argv, load); }
