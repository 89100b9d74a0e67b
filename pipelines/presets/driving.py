"""Published runs on street scenes: nuImages (MMDetection3D's metafile) and Cityscapes (three sources)."""

from pipelines.geometry import AugmentConfig
from pipelines.presets.preset import Preset, Published, Recipe
from pipelines.recipes import (
    cityscapes_fine_steps,
    cityscapes_from_coco_steps,
    mmdetection_cityscapes_epochs,
    mmdetection_epochs,
)

# Long and short edge are drawn apart, around the pictures' own 1600 x 900.
_NUIMAGES_SCALES = AugmentConfig(short_edges_px=(720, 1080), long_edges_px=(1280, 1920), ranges=True)
_1X = Recipe("1x", mmdetection_epochs(12, (8, 11)), _NUIMAGES_SCALES)
_20E = Recipe("20e", mmdetection_epochs(20, (16, 19)), _NUIMAGES_SCALES)

_CITYSCAPES_RANGE = AugmentConfig(short_edges_px=(800, 1024), ranges=True)
_PAPER = Recipe("24k steps", cityscapes_fine_steps(), _CITYSCAPES_RANGE)
_PAPER_FROM_COCO = Recipe("4k steps", cityscapes_from_coco_steps(), _CITYSCAPES_RANGE)
_DETECTRON2 = Recipe(
    "24k steps", cityscapes_fine_steps(), AugmentConfig(short_edges_px=(800, 832, 864, 896, 928, 960, 992, 1024))
)
_MMDETECTION = Recipe("1x", mmdetection_cityscapes_epochs(), _CITYSCAPES_RANGE)


def _nuimages(
    detector: str, recipe: Recipe, box: float | None = None, mask: float | None = None, gb: float | None = None,
    coco: str = "", note: str = "",
) -> Preset:  # fmt: skip
    """A row of the zoo; `coco` is the run on COCO it starts from.

    The name has that run's schedule; where both are "20e" once, as in MMDetection3D's own names.
    """
    published = Published("MMDetection3D", "nuImages val", box, mask, memory_gb=gb, note=note)
    pretraining = f"coco_{coco.rsplit('_', 1)[1]}" if coco else ""
    words = (detector, pretraining, "" if pretraining.endswith(recipe.schedule) else recipe.schedule)
    name = "nuimages_" + "_".join(word for word in words if word)
    return Preset(name, f"nuimages_{detector}", recipe, published, f"COCO: {coco}" if coco else "ImageNet")


_R50_2X = "mmdet_mask_rcnn_r50_fpn_2x"
_CAFFE_3X = "mmdet_mask_rcnn_r50_caffe_fpn_ms_poly_3x"
_CASCADE_20E = "mmdet_cascade_mask_rcnn_r50_fpn_20e"
_HTC_20E = "mmdet_htc_r50_fpn_20e"
_HTC_X101_20E = "mmdet_htc_x101_64x4d_fpn_dconv_c3_c5_20e"

NUIMAGES = (
    _nuimages("mask_rcnn_r50_fpn", _1X, 47.8, 38.4, 7.4),
    _nuimages("mask_rcnn_r50_fpn", _1X, 49.7, 40.5, 7.4, _R50_2X),
    _nuimages("mask_rcnn_r50_caffe_fpn", _1X, 47.7, 38.2, 7.0),
    _nuimages("mask_rcnn_r50_caffe_fpn", _1X, 49.9, 40.8, 7.0, _CAFFE_3X),
    _nuimages("mask_rcnn_r50_caffe_fpn", _20E, 50.6, 41.3, 7.0, _CAFFE_3X),
    _nuimages("mask_rcnn_r101_fpn", _1X, 48.9, 39.1, 10.9),
    _nuimages("mask_rcnn_x101_32x4d_fpn", _1X, 50.4, 40.5, 13.3),
    _nuimages("cascade_mask_rcnn_r50_fpn", _1X, 50.8, 40.4, 8.9),
    _nuimages("cascade_mask_rcnn_r50_fpn", _1X, 52.8, 42.2, 8.9, _CASCADE_20E),
    _nuimages("cascade_mask_rcnn_r50_fpn", _20E, 52.8, 42.2, 8.9, _CASCADE_20E,
              note="the same figures as the 1x row in the README and the metafile, though its weights are others"),
    _nuimages("cascade_mask_rcnn_r101_fpn", _1X, 51.5, 40.7, 12.5),
    _nuimages("cascade_mask_rcnn_x101_32x4d_fpn", _1X, 52.8, 41.6, 14.9),
    _nuimages("htc_without_semantic_r50_fpn", _1X),
    _nuimages("htc_r50_fpn", _1X),
    _nuimages("htc_r50_fpn", _1X, 53.8, 43.8, 11.6, _HTC_20E),
    _nuimages("htc_r50_fpn", _20E, 54.8, 44.4, 11.6, _HTC_20E),
    _nuimages("htc_x101_64x4d_fpn_dconv_c3_c5", _20E, 57.3, 46.4, 13.3, _HTC_X101_20E,
              note="one picture on each of 16 GPUs"),
)  # fmt: skip

# Appendix A of the paper; `maskray import --classes cityscapes` copies the rows of the classes that both have.
_CLASSES_FROM_COCO = "person, car, train, truck, motorcycle, bus and bicycle take COCO's weights, rider starts anew"

CITYSCAPES = (
    Preset(
        "cityscapes_paper_mask_rcnn_r50_fpn", "cityscapes_paper_mask_rcnn_r50_fpn", _PAPER,
        Published("He et al. 2017, table 7", "Cityscapes val", mask_ap=31.5, note="26.2 on test"),
    ),
    Preset(
        "cityscapes_paper_mask_rcnn_r50_fpn_coco", "cityscapes_paper_mask_rcnn_r50_fpn", _PAPER_FROM_COCO,
        Published("He et al. 2017, table 7", "Cityscapes val", mask_ap=36.4,
                  note=f"32.0 on test; {_CLASSES_FROM_COCO}"),
        "COCO: paper_mask_rcnn_r50_fpn",
    ),
    Preset(
        "cityscapes_detectron2_mask_rcnn_r50_fpn", "cityscapes_detectron2_mask_rcnn_r50_fpn", _DETECTRON2,
        Published("Detectron2", "Cityscapes val", mask_ap=36.5, memory_gb=4.4, fps=1 / 0.078,
                  note="the output layers start anew; the paper's 31.5 starts from ImageNet instead"),
        "COCO: detectron2_mask_rcnn_r50_fpn_3x",
    ),
    Preset(
        "cityscapes_mmdet_mask_rcnn_r50_fpn_1x", "cityscapes_mmdet_mask_rcnn_r50_fpn", _MMDETECTION,
        Published("MMDetection", "Cityscapes val", box_ap=40.9, mask_ap=36.4, memory_gb=5.3, note="64 epochs"),
        "COCO: mmdet_mask_rcnn_r50_fpn_1x",
    ),
)  # fmt: skip

DRIVING = NUIMAGES + CITYSCAPES
