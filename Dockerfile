# cwdpo on a CPU, or with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 on CUDA (its wheels bring CUDA's
# libraries; the host needs a driver and the NVIDIA container toolkit). Not built by CI.
#
#   docker build -t cwdpo . && docker run --rm -v "$PWD:/work" cwdpo --help
#   docker build -t cwdpo:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY . .
# hadolint ignore=DL3013  # which torchvision there is follows from torch and the index
RUN pip install --no-cache-dir "torch>=2.6" torchvision --index-url "$TORCH_INDEX" && pip install --no-cache-dir .
WORKDIR /work
ENTRYPOINT ["cwdpo"]
