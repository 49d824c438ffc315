"""8-bit integers: one way for post-training quantization and for training with quantization.

`quantize(detector)` folds a detector and puts a `FakeQuant` where an 8-bit engine would have integers. Then its ranges
are observed on pictures, and that is post-training quantization; training goes on from there, and that is QAT.
`cpu_form` makes of it what is fast on a CPU.
"""

from models.quant.convolution import IntConv2d, QuantConv2d
from models.quant.cpu import cpu_form, learned_ranges, with_learned
from models.quant.fake_quant import FakeQuant, UintFakeQuant
from models.quant.graph import QuantDetector, QuantError, quantize
from models.quant.observe import Ranges
from models.quant.ranges import METHODS, Method

__all__ = [
    "METHODS", "FakeQuant", "IntConv2d", "Method", "QuantConv2d", "QuantDetector", "QuantError", "Ranges",
    "UintFakeQuant", "cpu_form", "learned_ranges", "quantize", "with_learned",
]  # fmt: skip
