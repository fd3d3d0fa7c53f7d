"""Every architecture is torchvision's to the key, the shape and the number."""

import gzip
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

from torchvision_import import torchvision  # noqa: E402

from relu_deploy.zoo.nn import ARCHITECTURES, architecture  # noqa: E402
from relu_deploy.zoo.recipes import ARCHITECTURES as RECIPES  # noqa: E402
from relu_deploy.zoo.recipes import build, recipe, recipes  # noqa: E402

FACTS = json.loads(gzip.decompress((Path(__file__).parents[1] / "resources" / "torchvision_state_dicts.json.gz").read_bytes()))[
    "models"
]
CLASSIFIERS = [entry.name for entry in RECIPES if entry.task == "classification"]
DETECTORS = [entry.name for entry in RECIPES if entry.task == "detection"]
SEGMENTERS = [entry.name for entry in RECIPES if entry.task == "segmentation"]
#: neither square nor a multiple of every stride, where the architecture leaves a choice
SIZES = {"ssd300_vgg16": (300, 300), "fcos_resnet50_fpn": (120, 200), "retinanet_resnet50_fpn": (120, 200)}


def torchvision_model(name):
    """Return torchvision's model with random weights and batch norms that do something."""
    models = torchvision().models
    if name in DETECTORS:
        model = models.detection.__dict__[name](weights=None, weights_backbone=None)
    elif name in SEGMENTERS:
        model = models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    else:
        model = models.get_model(name, weights=None, **({"init_weights": False} if name.startswith("vgg") else {}))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


#: detectors are looked at more than once, and torchvision takes seconds to draw their weights
torchvision_detector = cache(torchvision_model)


def with_the_weights_of(theirs, name, **arguments):
    """Return our architecture with the very weights of torchvision's module."""
    with torch.device("meta"):
        ours = architecture(name)(**arguments)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return ours.eval()


def test_the_table_of_architectures_is_read_without_importing_torch():
    code = "import sys; from relu_deploy.zoo.nn import ARCHITECTURES; print(len(ARCHITECTURES) > 10, 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("name", [entry.name for entry in RECIPES])
def test_state_dict_has_torchvisions_keys_dtypes_and_shapes_in_its_order(name):
    with torch.device("meta"):
        module = architecture(name)()
    ours = {key: [str(value.dtype).removeprefix("torch."), *value.shape] for key, value in module.state_dict().items()}
    assert list(ours.items()) == list(FACTS[name]["state_dict"].items())


@pytest.mark.parametrize("name", list(recipes()))
def test_the_zoo_states_the_true_parameter_count_and_activation(name):
    known = recipe(name)
    with torch.device("meta"):
        module = build(name)
    assert sum(parameter.numel() for parameter in module.parameters()) == known.parameters
    kinds = {type(part).__name__ for part in module.modules()} & {"ReLU", "ReLU6", "SiLU", "GELU", "LeakyReLU", "Hardswish"}
    assert kinds == {known.activation}


def test_every_architecture_has_a_recipe_and_every_recipe_an_architecture():
    assert {entry.name for entry in RECIPES} <= set(ARCHITECTURES)
    assert set(ARCHITECTURES) <= set(recipes())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_torchvisions_logits_with_its_weights(name):
    theirs = torchvision_model(name)
    ours = with_the_weights_of(theirs, name)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.abs().max() > 0


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_give_torchvisions_logits_of_every_pixel_with_its_weights(name):
    theirs = torchvision_model(name)
    ours = with_the_weights_of(theirs, name)
    # Neither square nor a multiple of the stride.
    images = torch.randn(1, 3, 65, 90, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, (got, auxiliary) = theirs(images), ours.with_auxiliary(images)
        assert torch.equal(ours(images), got)
    for one, other in ((got, expected["out"]), (auxiliary, expected["aux"])):
        assert one.shape == other.shape == (1, 21, 65, 90)
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
        assert other.std() > 0


def test_a_segmenter_without_its_auxiliary_classifier_takes_torchvisions_weights_without_it():
    with torch.device("meta"):
        module = architecture("fcn_resnet50")(aux_loss=False)
    required = [key for key in FACTS["fcn_resnet50"]["state_dict"] if not key.startswith("aux_classifier.")]
    assert list(module.state_dict()) == required
    with pytest.raises(ValueError, match="aux_loss=False"):
        module.with_auxiliary(None)


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_give_torchvisions_head_maps_with_its_weights(name):
    theirs = torchvision_detector(name)
    images = torch.randn(1, 3, *SIZES[name], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = with_the_weights_of(theirs, name)(images)
        expected = torchvision_head_maps(theirs, images)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1e-6)


def torchvision_head_maps(theirs, images):
    heads = theirs.head(list(theirs.backbone(images).values()))
    return [heads[key] for key in ("cls_logits", "bbox_regression", "bbox_ctrness") if key in heads]


def test_weights_published_with_frozen_batch_norms_of_eps_0_load_strictly_and_give_torchvisions_head_maps():
    # As torchvision builds RetinaNet for its COCO weights; no num_batches_tracked in that state dict.
    models, ops = torchvision().models, torchvision().ops
    theirs = models.detection.RetinaNet(
        models.detection.backbone_utils._resnet_fpn_extractor(
            models.resnet50(weights=None, norm_layer=ops.FrozenBatchNorm2d),
            0,
            returned_layers=[2, 3, 4],
            extra_blocks=ops.feature_pyramid_network.LastLevelP6P7(256, 256),
        ),
        91,
    ).eval()
    models.detection._utils.overwrite_eps(theirs, 0.0)
    stem = theirs.backbone.body.bn1
    stem.running_var.fill_(1e-4)
    stem.weight.fill_(1e-2)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = torchvision_head_maps(theirs, images)
        got = with_the_weights_of(theirs, "retinanet_resnet50_fpn", batch_norm_eps=0.0)(images)
        with_the_usual_eps = with_the_weights_of(theirs, "retinanet_resnet50_fpn")(images)
    for one, usual, other in zip(got, with_the_usual_eps, expected, strict=True):
        spread = other.std()
        assert (one - other).abs().max() <= 1e-4 * spread
        assert (usual - other).abs().max() > 1e-2 * spread


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", *DETECTORS])
def test_random_weights_are_drawn_as_torchvision_draws_them(name):
    theirs = (torchvision_detector if name in DETECTORS else torchvision_model)(name)
    ours = architecture(name)().state_dict()
    norms = {path for path, module in theirs.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    for key, value in theirs.state_dict().items():
        if key.rsplit(".", 1)[0] in norms or key == "fc.bias":  # ours to disturb, and drawn from a range, not constant
            continue
        if value.dim() == 1:
            assert torch.equal(ours[key], value), key
        elif value.numel() >= 4096:
            assert float(ours[key].std() / value.std()) == pytest.approx(1, abs=0.08), key


@pytest.mark.parametrize("name", DETECTORS)
def test_decoding_and_suppression_find_what_torchvision_finds(name):
    # Head maps drawn at random, and a threshold so high that torchvision's caps (best 1000 a level, 400 a class) do not bite.
    size = SIZES[name]
    theirs = torchvision_detector(name)
    with torch.device("meta"):
        ours = architecture(name)()
        shapes = [one.shape for one in ours(torch.empty(1, 3, *size))]
    image = torch.zeros(1, 3, *size)
    draw = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        maps = [1.5 * torch.randn(shape, generator=draw) - 3 * (index == 0) for index, shape in enumerate(shapes)]
        maps[1] = maps[1].abs() if name.startswith("fcos") else 0.3 * maps[1]
        levels = list(theirs.backbone(image).values())
        pictures = torchvision().models.detection.image_list.ImageList(image, [size])
        anchors = theirs.anchor_generator(pictures, levels)
        heads = dict(zip(("cls_logits", "bbox_regression", "bbox_ctrness"), maps, strict=False))
        theirs.score_thresh = float(torch.quantile(_scores(name, maps).flatten()[:1_000_000], 0.9995))
        if name == "ssd300_vgg16":
            expected = theirs.postprocess_detections(heads, anchors, [size])[0]
        else:
            counts = [level.shape[2] * level.shape[3] for level in levels]
            counts = [count * maps[0].shape[1] // sum(counts) for count in counts]
            split = {key: list(value.split(counts, 1)) for key, value in heads.items()}
            expected = theirs.postprocess_detections(split, [list(anchors[0].split(counts))], [size])[0]
        boxes, scores = ours.decoder(*size)(*maps)
    from relu_deploy.tasks.detection import postprocess

    limit = theirs.detections_per_img
    found = postprocess(
        boxes.numpy(), scores.numpy(), score_threshold=theirs.score_thresh, iou_threshold=theirs.nms_thresh, max_detections=limit
    )[0]
    assert 5 < len(found["scores"]) <= limit
    torch.testing.assert_close(torch.from_numpy(found["scores"]), expected["scores"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(found["boxes"]), expected["boxes"], rtol=1e-4, atol=1e-2)
    assert (torch.from_numpy(found["labels"]) == expected["labels"]).all()


def test_default_boxes_lie_where_torchvisions_do_in_a_picture_that_is_not_square():
    height, width = 300, 380
    sizes = [(38, 48), (19, 24), (10, 12), (5, 6), (3, 4), (1, 2)]
    theirs = torchvision_detector("ssd300_vgg16").anchor_generator
    picture = torchvision().models.detection.image_list.ImageList(torch.empty(1, 3, height, width), [(height, width)])
    expected = theirs(picture, [torch.empty(1, 1, *size) for size in sizes])[0]
    with torch.device("meta"):
        ours = architecture("ssd300_vgg16")()
    decoder = ours.decoder(height, width)
    got = torch.cat([decoder.center - decoder.size / 2, decoder.center + decoder.size / 2], 1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-3)


def _scores(name, maps):
    if name == "ssd300_vgg16":
        return maps[0].softmax(-1)[..., 1:]
    scores = maps[0].sigmoid()
    return (scores * maps[2].sigmoid()).sqrt() if len(maps) == 3 else scores


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_randomness_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (build("squeezenet1_1", seed=seed).features[0].weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
