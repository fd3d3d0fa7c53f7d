"""The float16 and int8 files that users make of a graph, with ONNX Runtime's own tools and their defaults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx


def to_float16(source: Path, target: Path, feeds: dict[str, np.ndarray]) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def to_int8(source: Path, target: Path, feeds: dict[str, np.ndarray]) -> None:
    import logging

    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    logging.getLogger().setLevel(logging.ERROR)
    # The calibration's own sessions tell of every range that they clip.
    onnxruntime.set_default_logger_severity(3)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([feeds])

        def get_next(self):
            return next(self.feeds, None)

    options = {
        # Without VNNI the 8-bit kernels of x86 add pairs of products in 16 bits, which weights of full range overflow.
        "reduce_range": "vnni" not in Path("/proc/cpuinfo").read_text(),
        "per_channel": True,
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
    }
    quantize_static(source, target, Reader(), extra_options={"ActivationSymmetric": True}, **options)
