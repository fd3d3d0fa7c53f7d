"""The measurement of verify's growth verifies real chains of Relus and draws what it measured."""

import xml.etree.ElementTree as ET

import verify_scaling

from relu_deploy.graph import find_relus, load_model


def test_the_chain_has_the_requested_depth_and_size(tmp_path):
    verify_scaling.write_chain(tmp_path / "chain.onnx", 5, 24)
    model = load_model(tmp_path / "chain.onnx")
    relus = find_relus(model)
    assert len(relus) == 5
    assert list(model.graph.outputs[0].shape)[1:] == [verify_scaling.CHANNELS, 24, 24]


def test_the_picture_has_a_point_for_each_measurement_of_time_and_of_memory():
    measurements = [
        {
            "varied": name,
            **verify_scaling.USUAL,
            name: value,
            "seconds": [value, 2.0 * value, 3.0 * value],
            "bytes": [1e6 * value],
        }
        for name, value in (("depth", 2), ("depth", 4), ("rows", 1), ("rows", 2), ("rows", 4))
    ]
    root = ET.fromstring(verify_scaling.picture({"measurements": measurements}))
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 2 * len(measurements)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    # The median of three rounds, in seconds; megabytes as they are.
    assert texts.count("8") >= 1
    assert "layers" in texts
    assert "rows" in texts
