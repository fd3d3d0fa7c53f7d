"""The verdict of `export` on a graph against its PyTorch program, and what `verify` does with it."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.storage.files import sha256
from relu_deploy.storage.manifest import MANIFEST, dump_manifest
from relu_deploy.verification.against import choose_against
from relu_deploy.verification.program_verdict import compare_with_program, relus_of_program


def rewritten(bundle, change):
    """Return `bundle` after `change` has been applied to its manifest."""
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    change(manifest)
    (bundle.path / MANIFEST).write_text(dump_manifest(manifest))
    return Bundle.open(bundle.path)


def louder(proto, position):
    """Multiply the weights of the convolution at `position` by 1.001."""
    node = [node for node in proto.graph.node if node.op_type == "Conv"][position]
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))


def test_export_compares_the_graph_with_its_program_and_keeps_the_hashes_of_both(digits_bundle):
    verdict = digits_bundle.program_verdict
    assert (verdict["passed"], verdict["relus"], verdict["outputs"], verdict["first_divergence"]) == (True, 6, 1, None)
    # The exporter folds batch norms in float32: the error is that of a few roundings, not of a wrong weight.
    assert 0.5 < verdict["error_ratio"] < 16
    assert verdict["inputs"]["shapes"] == {"x": [1, 1, 28, 28]}
    assert verdict["files"] == {name: sha256(digits_bundle.path / name) for name in ("model.onnx", "source.pt2")}


def test_verify_needs_no_torch_where_export_has_compared_the_graph(digits_copy):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import relu_deploy; report = relu_deploy.verify(sys.argv[1])\n"
        "print(report.passed, report.against, report.to_json()['program_verdict']['relus'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(digits_copy.path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "reference", "6"], done.stderr


def test_the_report_cites_the_verdict(command, digits_copy):
    shown = command("verify", digits_copy.path, "--quiet")
    assert "digits against reference in float64" in shown.stdout
    assert "the graph agrees with its PyTorch program: 6 Relus and 1 output" in shown.stdout


def test_a_graph_that_differs_from_its_program_is_recorded_with_the_tensor(digits_copy):
    proto = onnx.load(digits_copy.onnx)
    louder(proto, 3)
    changed = digits_copy.add("model.onnx", proto.SerializeToString())
    relus = relus_of_program(changed)
    verdict = compare_with_program(changed, load(changed, "torch", taps=tuple(relus)), relus)
    assert not verdict.passed
    # The Relu behind the fourth convolution is the first tensor of the program that the change reaches.
    assert verdict.first_divergence == relus[3].output
    assert verdict.files["model.onnx"] == sha256(changed.onnx)


def test_a_verdict_on_another_graph_is_no_verdict(digits_copy):
    assert choose_against(digits_copy, None) == "reference"
    proto = onnx.load(digits_copy.onnx)
    louder(proto, 0)
    changed = digits_copy.add("model.onnx", proto.SerializeToString())
    assert changed.program_verdict is None
    assert choose_against(changed, None) == "torch"


def test_a_graph_that_failed_or_was_never_compared_is_verified_against_its_program(digits_copy):
    failed = rewritten(digits_copy, lambda manifest: manifest["program_verdict"].update(passed=False))
    assert choose_against(failed, None) == "torch"
    without = rewritten(digits_copy, lambda manifest: manifest.pop("program_verdict"))
    assert choose_against(without, None) == "torch"


@pytest.mark.parametrize("content", [b"no archive", None], ids=["damaged", "runs code"])
def test_a_program_that_is_not_safe_to_load_leaves_the_graph_as_its_own_truth_and_the_comparison_unknown(
    digits_copy, command, content
):
    program = digits_copy.path / "source.pt2"
    if content is None:
        with zipfile.ZipFile(program, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/data/extra.pkl", b"cos\nsystem\n.")
    else:
        program.write_bytes(content)

    def change(manifest):
        manifest.pop("program_verdict")
        manifest["files"]["source.pt2"] = {"sha256": sha256(program), "bytes": program.stat().st_size}

    changed = rewritten(digits_copy, change)
    assert choose_against(changed, None) == "reference"
    ended = command("verify", changed.path, "--json", "-", "--quiet")
    assert (ended.code, ended.json["against"], ended.json["program_verdict"]) == (0, "reference", None), ended.stderr
    assert "source.pt2" in ended.json["program_unknown"]
    shown = command("verify", changed.path, "--quiet")
    assert "whether the graph agrees with its PyTorch program is unknown: " in shown.stdout
    # Whoever requests the comparison by name, or has a graph that is known to differ, gets no other one instead.
    assert command("verify", changed.path, "--against", "torch", "--quiet").code == 2


def test_the_verdict_stays_with_a_bundle_that_leaves_its_program_behind(digits_copy):
    (digits_copy.path / "source.pt2").unlink()
    alone = rewritten(digits_copy, lambda manifest: manifest["files"].pop("source.pt2"))
    assert alone.program_verdict["passed"]
    assert choose_against(alone, None) == "reference"


@pytest.mark.parametrize(("field", "junk"), [("passed", "yes"), ("files", []), ("relus", -1), ("made_by", {"torch": 2})])
def test_a_verdict_that_is_none_is_refused_with_its_field(digits_copy, field, junk):
    with pytest.raises(InputError, match=f"program_verdict/{field}"):
        rewritten(digits_copy, lambda manifest: manifest["program_verdict"].update({field: junk}))


def test_the_program_of_the_bundle_is_still_the_truth_on_request(command, digits_copy):
    answer = command("verify", digits_copy.path, "--against", "torch", "--json", "-", "--quiet")
    assert (answer.code, answer.json["against"]) == (0, "torch")
