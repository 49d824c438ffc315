"""TensorRT engines: options, build, cache, proof."""
