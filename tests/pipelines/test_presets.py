"""Every named run is a whole one: it has a detector, a recipe that ends, and figures that can belong to it."""

import json

import pytest
import torch

from model.build import build_detector
from model.config import Norm
from model.presets import DETECTORS
from pipelines.config import Precision, TrainConfig
from pipelines.optim import build_optimiser, learning_rate_at, resolve_schedule
from pipelines.presets import PRESETS, preset
from pipelines.presets.listing import as_json, matching, network, notes, row
from pipelines.presets.named import RUNS

COCO = 117_266  # pictures of train2017 with objects


def test_names_are_unique():
    assert len(RUNS) == len(PRESETS)
    assert all(name == run.name and " " not in name and name == name.lower() for name, run in PRESETS.items())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_run(name):
    config = preset(name)
    assert isinstance(config, TrainConfig)
    assert config.detector == DETECTORS[PRESETS[name].detector]()
    assert (config.train, config.out, config.init) == ((), "", "")
    optim = resolve_schedule(config.optim, COCO, config.optim.batch)
    rates = [learning_rate_at(step, optim) for step in range(0, optim.steps, optim.steps // 20)]
    assert all(0 < rate <= optim.learning_rate for rate in rates)
    assert rates[-1] < optim.learning_rate / 5
    assert all(milestone < optim.steps for milestone in optim.milestones)
    assert optim.learning_rate == config.optim.learning_rate, "published for another batch"


@pytest.mark.parametrize("name", PRESETS)
def test_published_figures_belong_to_the_detector(name):
    detector, published, init = preset(name).detector, PRESETS[name].published, PRESETS[name].init
    assert published.mask_ap is None or detector.mask.enabled
    assert published.keypoint_ap is None or detector.keypoint.enabled
    if published.box_ap and published.mask_ap:
        assert published.mask_ap < published.box_ap
    classes = {"nuImages val": 10, "Cityscapes val": 8}.get(published.measured_on, detector.num_classes)
    assert detector.num_classes == classes
    assert init in ("none", "ImageNet", "ImageNet-5k") or init.removeprefix("COCO: ") in PRESETS


@pytest.mark.parametrize("name", [name for name, run in PRESETS.items() if run.init == "none"])
def test_what_starts_from_random_weights_freezes_nothing(name):
    backbone = preset(name).detector.backbone
    assert backbone.frozen_stages == 0
    assert backbone.norm not in (Norm.FROZEN, Norm.FIXED)


# By the sources' own counts of steps; epochs in steps of COCO.
SCHEDULES = {
    "mask_rcnn_r50_fpn_1x": (90_000, (60_000, 80_000), 16, 0.02),
    "torchvision_mask_rcnn_r50_fpn": (190_558, (117_266, 161_241), 16, 0.02),
    "torchvision_mask_rcnn_r50_fpn_v2": (732_913, (644_963, 703_596), 64, 0.1),
    "torchvision_keypoint_rcnn_r50_fpn": (337_140, (263_849, 315_152), 16, 0.02),
    "detectron2_mask_rcnn_r50_c4_3x": (270_000, (210_000, 250_000), 16, 0.02),
    "detectron2_scratch_mask_rcnn_r50_fpn_gn_std_9x": (202_500, (187_500, 197_500), 64, 0.08),
    "detectron2_mask_rcnn_r50_fpn_lsj_50ep": (92_187, (81_944, 88_773), 64, 0.1),
    "detectron2_mask_rcnn_r50_fpn_lsj_400ep": (737_500, (655_556, 710_184), 64, 0.1),
    "detectron2_cascade_mask_rcnn_x152_32x8d_fpn_in5k_gn_dconv_50k": (50_000, (35_000, 45_000), 128, 0.16),
    "mmdet_mask_rcnn_r50_fpn_1x": (87_950, (58_633, 80_620), 16, 0.02),
    "mmdet_mask_rcnn_r50_caffe_fpn_ms_poly_2x": (175_899, (117_266, 168_570), 16, 0.02),
    "mmdet_mask_rcnn_r50_caffe_fpn_ms_poly_3x": (263_849, (205_216, 249_190), 16, 0.02),
    "mmdet_mask_rcnn_r50_fpn_ms_poly_3x": (263_849, (197_886, 241_861), 16, 0.02),
    "mmdet_cascade_mask_rcnn_x101_64x4d_fpn_20e": (146_583, (117_266, 139_253), 16, 0.02),
    "mmdet_mask_rcnn_r50_fpn_amp_lsj_200e": (183_229, (161_241, 175_899), 64, 0.08),
    "paper_mask_rcnn_r50_c4": (160_000, (120_000,), 16, 0.02),
    "paper_mask_rcnn_x101_64x4d_fpn": (160_000, (120_000,), 8, 0.01),
    "paper_keypoint_rcnn_r50_fpn": (90_000, (60_000, 80_000), 16, 0.02),
    "paper_enhanced_1_updated_baseline": (180_000, (120_000, 160_000), 8, 0.01),
    "paper_enhanced_4_train_time_scales": (260_000, (200_000, 240_000), 8, 0.01),
    "paper_keypoint_enhanced_1_updated_baseline": (130_000, (100_000, 120_000), 16, 0.02),
    "detectron_mask_rcnn_x101_64x4d_fpn_2x": (360_000, (240_000, 320_000), 8, 0.01),
    "cityscapes_paper_mask_rcnn_r50_fpn": (24_000, (18_000,), 8, 0.01),
    "cityscapes_paper_mask_rcnn_r50_fpn_coco": (4_000, (3_000,), 8, 0.01),
}


@pytest.mark.parametrize(("name", "wanted"), SCHEDULES.items(), ids=SCHEDULES)
def test_schedules_have_the_published_steps(name, wanted):
    optim = preset(name).optim
    found = resolve_schedule(optim, COCO, optim.batch)
    steps, milestones, batch, rate = wanted
    assert (found.steps, found.batch, found.learning_rate) == (steps, batch, rate)
    assert found.milestones == pytest.approx(milestones, abs=1)


def test_nuimages_and_cityscapes_epochs():
    optim = preset("nuimages_htc_r50_fpn_coco_20e").optim
    assert (optim.epochs, optim.milestones) == (20, (16, 19))
    optim = preset("cityscapes_mmdet_mask_rcnn_r50_fpn_1x").optim
    assert (optim.epochs, optim.milestones, optim.batch) == (64, (56,), 8)


def test_scales_of_training_pictures():
    found = preset("nuimages_mask_rcnn_r50_fpn_1x").augment
    assert (found.short_edges_px, found.long_edges_px, found.ranges) == ((720, 1080), (1280, 1920), True)
    found = preset("mmdet_htc_x101_64x4d_fpn_dconv_c3_c5_20e").augment
    assert (found.short_edges_px, found.long_edges_px, found.ranges) == ((400, 1400), (1600,), True)
    found = preset("torchvision_mask_rcnn_r50_fpn_v2").augment
    assert (found.jitter, found.crop_px) == ((0.1, 2.0), 1024)
    assert preset("detectron2_mask_rcnn_r50_fpn_3x").augment.short_edges_px == (640, 672, 704, 736, 768, 800)
    assert preset("mmdet_mask_rcnn_r50_fpn_1x").augment.short_edges_px == ()


def test_weight_decay_and_precision():
    """MMDetection decays norms, Detectron2 does not; Detectron's biases learn faster and do not decay."""
    assert preset("mmdet_mask_rcnn_r50_fpn_1x").optim.norm_weight_decay == 1e-4
    assert preset("detectron2_mask_rcnn_r50_fpn_1x").optim.norm_weight_decay == 0
    found = preset("detectron_mask_rcnn_r50_fpn_1x").optim
    assert (found.bias_rate_factor, found.decay_biases) == (2.0, False)
    assert preset("mmdet_mask_rcnn_r50_fpn_fp16_1x").precision is Precision.FP16
    assert preset("mmdet_mask_rcnn_r50_fpn_1x").precision is Precision.FP32


@pytest.mark.parametrize("name", ["small_mask_rcnn_r18_fpn", "mmdet_mask_rcnn_r50_fpn_1x"])
def test_the_optimiser_has_something_to_train(name):
    config = preset(name)
    with torch.device("meta"):
        detector = build_detector(config.detector)
    assert build_optimiser(detector, config.optim).param_groups


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("", "`maskray list presets` shows all"),
        ("mmdet_mask_rcn_r50_fpn_1x", "did you mean mmdet_mask_rcnn_r50_fpn_1x, .*"),
        ("MASK_RCNN_R18_FPN_1X", "`maskray list presets` shows all"),
    ],
)
def test_an_unknown_preset_says_what_was_probably_meant(name, hint):
    with pytest.raises(ValueError, match=f"^unknown preset '{name}': {hint}"):
        preset(name)


# The listing.


def test_words_narrow_the_list():
    assert matching(()) == RUNS
    assert len(matching(("nuimages",))) == 17
    assert [run.name for run in matching(("CASCADE", "nuImages", "r101"))] == ["nuimages_cascade_mask_rcnn_r101_fpn_1x"]
    assert all("dconv" in network(run().detector) for run in matching(("dconv",)))
    assert len(matching(("table", "2c"))) == 4


def test_words_that_nothing_has_are_named():
    with pytest.raises(ValueError, match=f"^no preset has 'dog' and 'cat': use fewer words, or none .* {len(RUNS)}$"):
        matching(("dog", "cat"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mask_rcnn_r18_fpn_1x", "R-18-FPN BN"),
        ("detectron2_mask_rcnn_r50_dc5_1x", "R-50-DC5"),
        ("detectron2_mask_rcnn_r50_fpn_gn_3x", "R-50-FPN GN"),
        ("mmdet_mask_rcnn_r50_fpn_mdconv_c3_c5_1x", "R-50-FPN mdconv"),
        ("mmdet_htc_x101_64x4d_fpn_dconv_c3_c5_20e", "X-101-64x4d-FPN dconv"),
        ("paper_enhanced_6_non_local", "X-152-32x8d-FPN NL"),
    ],
)
def test_a_network_has_the_name_papers_give_it(name, wanted):
    assert network(preset(name).detector) == wanted


def test_a_row_shows_what_was_published_and_dashes_for_the_rest():
    assert row(PRESETS["mmdet_mask_rcnn_r50_fpn_1x"])[1:] == (
        "R-50-FPN", "1x", "16", "ImageNet", "38.2", "34.7", "-", "4.4", "16.1", "MMDetection, COCO val2017",
    )  # fmt: skip
    assert row(PRESETS["detectron2_keypoint_rcnn_r50_fpn_1x"])[5:10] == ("53.6", "-", "64.0", "5.0", "13.9")
    assert set(row(PRESETS["mask_rcnn_r50_fpn_1x"])[5:10]) == {"-"}
    assert row(PRESETS["nuimages_htc_r50_fpn_coco_20e"])[4] == "COCO"


def test_what_is_odd_about_published_figures_is_said():
    said = "\n".join(notes(RUNS))
    for name, words in {
        "mmdet_mask_rcnn_r50_caffe_fpn_ms_poly_3x": "never decays",
        "mmdet_mask_rcnn_x101_32x8d_fpn_ms_poly_1x": "43.6",
        "nuimages_cascade_mask_rcnn_r50_fpn_coco_20e": "same figures as the 1x row",
        "cityscapes_paper_mask_rcnn_r50_fpn_coco": "rider starts anew",
    }.items():
        assert any(line.startswith(f"{name}: ") and words in line for line in said.splitlines()), name


def test_json_has_every_field():
    found = json.loads(as_json(RUNS))
    assert [run["name"] for run in found] == list(PRESETS)
    by_name = {run["name"]: run for run in found}
    htc = by_name["nuimages_htc_r50_fpn_coco_20e"]
    assert (htc["epochs"], htc["milestones"], htc["init"]) == (20, [16, 19], "COCO: mmdet_htc_r50_fpn_20e")
    assert htc["published"] == {
        "source": "MMDetection3D", "measured_on": "nuImages val", "box_ap": 54.8, "mask_ap": 44.4,
        "keypoint_ap": None, "memory_gb": 11.6, "fps": None, "note": "",
    }  # fmt: skip
    assert by_name["detectron2_mask_rcnn_r50_fpn_1x"]["steps"] == 90_000


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("small_mask_rcnn_r18_fpn", (False, 0, 0)),
        ("mmdet_mask_rcnn_r50_fpn_1x", (True, 32, 0)),
        ("detectron2_mask_rcnn_r50_fpn_1x", (True, 0, 0)),
        ("detectron2_keypoint_rcnn_r50_fpn_1x", (True, 0, 1)),
        ("torchvision_keypoint_rcnn_r50_fpn", (True, 0, 10)),
    ],
)
def test_pictures_are_chosen_as_the_source_does(name, wanted):
    sampling = preset(name).sampling
    assert (sampling.drop_empty, sampling.min_side_px, sampling.min_keypoints) == wanted
