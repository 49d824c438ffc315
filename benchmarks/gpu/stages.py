"""The stages, most valuable first."""

from __future__ import annotations

from benchmarks.gpu.stage import Stage

STAGES = (
    Stage("machine", "benchmarks.gpu.machine", 75,
          "card, driver, versions; what a copy and a matrix product reach, by which the rest is divided"),
    Stage("same-numbers", "benchmarks.gpu.same_numbers", 75,
          "outputs, losses, gradients, assignment and 50 training steps against the CPU's"),
    Stage("training", "benchmarks.gpu.training", 120,
          "images a second, memory and share of the ceiling, beside torchvision; profile and host syncs"),
    Stage("digits", "benchmarks.gpu.digits", 180,
          "the digits recipe from nothing to a verified ONNX file, trained on the GPU"),
    Stage("eager", "benchmarks.gpu.eager", 120,
          "Detector with the PyTorch backend: batches, precisions, graphs, frames on the device, memory, threads"),
    Stage("cuda-memory", "benchmarks.gpu.cuda_memory", 90,
          "tests/gpu: the CUDA code of the runtime on the real driver"),
    Stage("engines", "benchmarks.gpu.engines", 240,
          "TensorRT-RTX engines built, run, scored and timed (its wheels are carried)"),
    Stage("onnxruntime", "benchmarks.gpu.ort", 120,
          "ONNX Runtime's CUDA and TensorRT-RTX providers (their wheels are carried)"),
    Stage("video", "benchmarks.gpu.video", 45,
          "video decoded on the GPU (PyNvVideoCodec is carried)"),
)  # fmt: skip
