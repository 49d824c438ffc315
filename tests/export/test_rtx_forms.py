"""TensorRT-RTX builds every form that is not another library's own. It needs no GPU to build."""

from __future__ import annotations

import pytest

from export.options import NmsKind
from tests.export.test_nms_forms import C, K, built

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is an extra: isodet[rtx]")


@pytest.mark.parametrize(
    ("kind", "half", "sm"),
    [("auto", False, "SM86"), ("auto", True, "SM75"), ("loop", False, "SM86"), ("none", False, "SM86")],
)
def test_it_builds(kind: NmsKind, half: bool, sm: str) -> None:
    """`auto` from the function's body, since RTX has no plugins; with half products on Turing, too."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(built(kind, half).SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, sm), 0)
    profile = builder.create_optimization_profile()
    for name, shape in {"boxes": (K, 4), "scores": (K,), "labels": (K,)}.items():
        profile.set_shape(name, (1, *shape), (2, *shape), (4, *shape))
    config.add_optimization_profile(profile)
    assert C > 1 and builder.build_serialized_network(network, config) is not None
