# An image for CPUs; for NVIDIA GPUs name the index of torch: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/ssldet
ENV PATH=/opt/ssldet/bin:$PATH
WORKDIR /src
COPY . .
# Local versions such as +cpu satisfy the exact versions of the constraints.
RUN pip install --extra-index-url "$TORCH_INDEX" --constraint constraints.txt ".[onnx]"

FROM python:3.11-slim
COPY --from=build /opt/ssldet /opt/ssldet
ENV PATH=/opt/ssldet/bin:$PATH HOME=/tmp
# Runs write to the folder that is mounted here; a caller's own user is set with --user "$(id -u):$(id -g)".
RUN useradd --create-home person
USER person
WORKDIR /work
ENTRYPOINT ["ssldet"]
CMD ["--help"]
