// Between the arrays of detector.h and PyTorch's tensors.

#pragma once

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "detector.h"

inline std::vector<at::Tensor> to_tensors(Inputs& inputs, const Model& model) {
  std::vector<at::Tensor> tensors{
      at::from_blob(inputs.images.data(), inputs.shape), at::tensor(inputs.image_sizes, at::kLong).unsqueeze(0)};
  if (model.has_threshold()) tensors.push_back(at::scalar_tensor(inputs.score_threshold, at::kFloat));
  return tensors;
}

inline void show_tensors(const std::vector<at::Tensor>& outputs, const Model& model, const Show& show) {
  const auto output = [&](const char* name) { return outputs.at(model.output(name)).contiguous(); };
  const at::Tensor boxes = output("boxes"), scores = output("scores"), classes = output("classes");
  show({boxes.const_data_ptr<float>(), scores.const_data_ptr<float>(), classes.const_data_ptr<int64_t>(),
        output("count")[0].item<int64_t>()});
}
