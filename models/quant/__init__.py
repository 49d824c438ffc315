"""8-bit quantization: one implementation for post-training quantization and for quantization-aware training.

`quantize(detector)` folds a detector and inserts a `FakeQuant` wherever an 8-bit engine computes with integers. With
ranges observed on pictures, this is post-training quantization. If training continues from there, it is QAT. `cpu_form`
turns the result into the form that is fast on a CPU.
"""

from models.quant.bias import correct_biases
from models.quant.convolution import IntConv2d, QuantConv2d
from models.quant.cpu import cpu_form, learned_ranges, with_learned
from models.quant.fake_quant import FakeQuant, UintFakeQuant
from models.quant.graph import QuantDetector, QuantError, quantize
from models.quant.observe import Ranges
from models.quant.ranges import METHODS, Method

__all__ = [
    "METHODS", "FakeQuant", "IntConv2d", "Method", "QuantConv2d", "QuantDetector", "QuantError", "Ranges",
    "UintFakeQuant", "correct_biases", "cpu_form", "learned_ranges", "quantize", "with_learned",
]  # fmt: skip
