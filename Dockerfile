# The command line in a container: prediction, serving, training.
#
#   docker build -t detectron2 .                                               # for CPUs
#   docker build -t detectron2:cuda --build-arg TORCH_BACKEND=cu132 .          # for NVIDIA GPUs
#   docker run --rm -v "$PWD:/data" detectron2 predict --weights model_final.pth photos
#
# TORCH_BACKEND is what `uv pip install --torch-backend` takes: cpu, cu126, cu132, rocm7.2 ...; EXTRAS are those of
# pyproject.toml.

FROM python:3.12-slim AS build
ARG TORCH_BACKEND=cpu
ARG EXTRAS=serve,bulk,video,opencv,onnx,safetensors
RUN pip install --no-cache-dir "uv>=0.9,<1"
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY detectron2 detectron2
RUN uv venv /opt/detectron2 \
    && uv pip install --no-cache --python /opt/detectron2/bin/python --torch-backend="${TORCH_BACKEND}" \
        --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 detectron2
COPY --from=build /opt/detectron2 /opt/detectron2
ENV PATH="/opt/detectron2/bin:${PATH}" PYTHONUNBUFFERED=1
USER 1000
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["detectron2"]
CMD ["--help"]
