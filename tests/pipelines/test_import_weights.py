"""The import command on the peers' own weights, and the way back through a file, bit for bit."""

import pickle
import re

import pytest
import torch

from model.build import build_detector
from model.convert import Framework, to_theirs
from model.presets import heads, rules
from model.settings import override
from pipelines import checkpoints, class_lists, cli, export_weights, foreign_weights, import_weights, starting_weights
from pipelines.export_weights import ExportConfig
from pipelines.import_weights import ImportConfig
from tests.oracles import parity

FIXTURES = [pytest.param(path, id=path.stem) for path in parity.files()]
SMALL = {
    "num_classes": 4,
    "fpn_channels": 8,
    "backbone.depth": 50,
    "backbone.stem_channels": 4,
    "box.channels": 12,
    "mask.channels": 8,
    "mask.num_convs": 1,
}
CONFIG = "model = dict(backbone=dict(style='caffe'))"


def detector(rules_of_a_framework, **more):
    config = rules_of_a_framework
    for path, value in {**SMALL, **more}.items():
        config = override(config, path.replace("__", "."), value)
    torch.manual_seed(0)
    return build_detector(config)


def saved(path, made, framework, **meta):
    """Weights of ours as a file of theirs, and their state dict."""
    state = {name: value.contiguous() for name, value in to_theirs(made.state_dict(), framework).items()}
    if framework is Framework.MMDETECTION:
        torch.save({"state_dict": state, "meta": meta}, path)
    elif framework is Framework.DETECTRON2:
        content = {"model": {name: value.numpy() for name, value in state.items()}, **meta}
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(state, path)
    return state


def run(source, out, **settings):
    return import_weights.run(ImportConfig(str(source), str(out), **settings))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("path", FIXTURES)
def test_the_peers_weights_go_in_and_out_bit_for_bit(path, tmp_path):
    fixture = parity.Fixture(path)
    framework = Framework(fixture.peer)
    style = "pytorch" if fixture.config.picture.channel_order.value == "rgb" else "caffe"
    source = tmp_path / "source"
    if framework is Framework.MMDETECTION:
        meta = {"config": f"model = dict(backbone=dict(style='{style}'))"}
        torch.save({"state_dict": fixture.weights, "meta": meta}, source)
    elif framework is Framework.DETECTRON2:
        content = {name: value.numpy() for name, value in fixture.weights.items()}
        source.write_bytes(pickle.dumps({"model": content, "__author__": "Detectron2 Model Zoo"}))
    else:
        torch.save(fixture.weights, source)
    eps = fixture.config.backbone.norm_eps if framework is Framework.TORCHVISION else None
    grouped = fixture.config.backbone.groups > 1 and framework is Framework.DETECTRON2
    preset = "detectron2_mask_rcnn_x101_32x8d_fpn_3x" if grouped else ""
    result = run(source, tmp_path / "out", norm_eps=eps, preset=preset)
    assert result.framework is framework
    assert not result.conversion.leftover
    config = checkpoints.load(str(tmp_path / "out")).detector
    assert (config.num_classes, config.roi, config.features) == (
        fixture.config.num_classes, fixture.config.roi, fixture.config.features
    )  # fmt: skip
    assert config.backbone.stride_in is fixture.config.backbone.stride_in
    assert config.picture.mean == fixture.config.picture.mean
    assert config.picture.std == fixture.config.picture.std
    assert config.backbone.norm is fixture.config.backbone.norm
    for ending in (".pth", ".safetensors"):
        back = str(tmp_path / f"back{ending}")
        export_weights.run(ExportConfig(str(tmp_path / "out"), framework, back))
        assert same(foreign_weights.read(back).state, fixture.weights)


def test_classes_of_coco_become_those_of_cityscapes(tmp_path):
    made = detector(rules.detectron2(), num_classes=80)
    saved(tmp_path / "w.pkl", made, Framework.DETECTRON2, __author__="Detectron2 Model Zoo")
    result = run(tmp_path / "w.pkl", tmp_path / "out", classes=("cityscapes",))
    assert result.order.why.startswith("assumed")
    assert any("new weights for rider" in notice for notice in result.notices)
    checkpoint = checkpoints.load(str(tmp_path / "out"))
    assert [(info.id, info.name) for info in checkpoint.classes][:2] == [(24, "person"), (25, "rider")]
    ours, theirs = checkpoints.load_detector(checkpoint).state_dict(), made.state_dict()
    # person 0, rider -, car 2, truck 7, bus 5, train 6, motorcycle 3, bicycle 1, and the background.
    rows = {0: 0, 2: 2, 3: 7, 4: 5, 5: 6, 6: 3, 7: 1}
    for new, old in {**rows, 8: 80}.items():
        assert torch.equal(ours["roi.box_head.scores.weight"][new], theirs["roi.box_head.scores.weight"][old])
    for new, old in rows.items():
        assert torch.equal(ours["roi.mask_head.logits.bias"][new], theirs["roi.mask_head.logits.bias"][old])
        assert torch.equal(
            ours["roi.box_head.deltas.weight"][4 * new : 4 * new + 4],
            theirs["roi.box_head.deltas.weight"][4 * old : 4 * old + 4],
        )
    assert torch.equal(ours["rpn.head.deltas.weight"], theirs["rpn.head.deltas.weight"])


def test_the_files_own_list_and_a_config_of_mmdetection(tmp_path):
    made = detector(heads.htc_without_semantic(rules.mmdetection_caffe()))
    names = ["a", "b", "c", "d"]
    saved(tmp_path / "w.pth", made, Framework.MMDETECTION, CLASSES=names, config=CONFIG)
    result = run(tmp_path / "w.pth", tmp_path / "out")
    assert result.order.why == "the file's own list"
    checkpoint = checkpoints.load(result.checkpoint)
    assert [info.name for info in checkpoint.classes] == names
    assert checkpoint.detector == made.config
    # Counters that our constant norms do not have were nought and need no keeping.
    assert starting_weights.load_remainder(checkpoint) == {}


def test_counters_that_ours_lacks_are_kept_for_the_way_back(tmp_path):
    made = detector(rules.mmdetection_caffe())
    state = to_theirs(made.state_dict(), Framework.MMDETECTION)
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(12345)
    torch.save({"state_dict": state, "meta": {"config": CONFIG}}, tmp_path / "w.pth")
    run(tmp_path / "w.pth", tmp_path / "out")
    back = str(tmp_path / "back.pth")
    export_weights.run(ExportConfig(str(tmp_path / "out"), Framework.MMDETECTION, back))
    assert foreign_weights.read(back).state["backbone.bn1.num_batches_tracked"].item() == 12345


@pytest.mark.parametrize(("framework", "ending"), [(Framework.DETECTRON2, ".pkl"), (Framework.MMDETECTION, ".pth"),
                                                   (Framework.TORCHVISION, ".safetensors")])  # fmt: skip
def test_what_was_exported_is_imported_without_a_question(framework, ending, tmp_path):
    made = detector(rules.torchvision(), box__nms_iou=0.37)
    starting_weights.save(str(tmp_path / "one"), made, class_lists.COCO[:4], {})
    path = str(tmp_path / f"w{ending}")
    export_weights.run(ExportConfig(str(tmp_path / "one"), framework, path))
    result = run(path, tmp_path / "two")
    one, two = (checkpoints.load(str(tmp_path / name)) for name in ("one", "two"))
    assert two.detector == one.detector
    assert two.files["model.safetensors"] == one.files["model.safetensors"]
    assert result.framework is framework


def test_a_preset_with_another_frameworks_rules_is_told(tmp_path):
    saved(tmp_path / "w.pkl", detector(rules.detectron2()), Framework.DETECTRON2)
    result = run(tmp_path / "w.pkl", tmp_path / "one", preset="mmdet_mask_rcnn_r50_fpn_1x")
    assert result.notices == ("mmdet_mask_rcnn_r50_fpn_1x has the rules of mmdet, the weights are of detectron2",)
    assert run(tmp_path / "w.pkl", tmp_path / "two", preset="detectron2_mask_rcnn_r50_fpn_1x").notices == ()


def test_the_same_import_again_changes_nothing_and_another_is_refused(tmp_path):
    made = detector(rules.torchvision())
    saved(tmp_path / "w.pth", made, Framework.TORCHVISION)
    first = run(tmp_path / "w.pth", tmp_path / "out", norm_eps=0.0)
    assert run(tmp_path / "w.pth", tmp_path / "out", norm_eps=0.0).checkpoint == first.checkpoint
    with pytest.raises(ValueError, match="holds another checkpoint, which was left alone"):
        run(tmp_path / "w.pth", tmp_path / "out", norm_eps=1e-5)


def test_missing_and_left_over_keys(tmp_path):
    made = detector(rules.torchvision())
    state = to_theirs(made.state_dict(), Framework.TORCHVISION)
    torch.save({**state, "extra.weight": torch.ones(1)}, tmp_path / "more.pth")
    result = run(tmp_path / "more.pth", tmp_path / "out", norm_eps=0.0)
    assert result.conversion.leftover == ("extra.weight",)
    assert ("left over", 1) in result.key_counts()
    assert ("extra.weight", "", "left over: no rule knows it") in result.every_key()
    assert len(result.every_key()) == len(state) + 1
    del state["rpn.head.cls_logits.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth lacks 1 parameters \(rpn\.head\.objectness\.bias\): give"):
        run(tmp_path / "less.pth", tmp_path / "none", norm_eps=0.0)
    assert not (tmp_path / "none").exists()


def test_a_shape_that_does_not_fit_is_refused(tmp_path):
    made = detector(rules.torchvision())
    state = to_theirs(made.state_dict(), Framework.TORCHVISION)
    state["rpn.head.cls_logits.bias"] = torch.zeros(4)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"rpn\.head\.objectness\.bias \(4,\) instead of \(3,\)"):
        run(tmp_path / "w.pth", tmp_path / "out", norm_eps=0.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("import w.pth", "import needs --out: give a folder or URI for the checkpoint"),
        ("import none.pth --out o", r"there is no file none\.pth: give weights as \.pth, \.pkl or \.safetensors"),
        (
            "import w.pth --out o",
            "weights of torchvision with constant norms do not say their epsilon: give --norm-eps 0 ",
        ),
        ("import w.pth --out o --preset resnet", "unknown preset 'resnet': .*`maskray list presets`"),
        ("import w.pth --out o --norm-eps -1", r"backbone\.norm_eps must be >= 0, got -1\.0"),
        ("import w.pth --out o --norm-eps 0 --from mmdet", r"the weights have no class scores: .*"),
        (
            "import w.pth --out o --norm-eps 0 --classes unicorn",
            r"none of --classes \(unicorn\) is among the source's .*",
        ),
        (
            "import w.pth --out o --norm-eps 0 --class-order a b",
            "--class-order has 2 different names, .* 4 classes: .*",
        ),
        (
            "export-weights o --to mmdet --out w.pkl",
            r"--out for mmdet must be a file that ends in \.pth or \.safetensors, got 'w\.pkl'",
        ),
        ("export-weights o --out w.pkl", "export-weights needs --to: one of torchvision, detectron2, mmdet"),
        ("export-weights o --to torchvision --out w.pth", "o holds no finished checkpoint: .*"),
    ],
)
def test_mistakes_end_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "w.pth", detector(rules.torchvision()), Framework.TORCHVISION)
    with pytest.raises(SystemExit) as end:
        cli.main(words.split())
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_the_command_line_tells_what_became_of_every_key(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = saved(tmp_path / "w.pth", detector(rules.torchvision()), Framework.TORCHVISION)
    words = "import w.pth --out o --norm-eps 0 --verbose --classes a=1 --class-order b c d e"
    cli.main(words.split())
    out = capsys.readouterr().out
    assert all(name in out for name in state)
    assert "backbone.norm_eps  " in out
    assert "known by" in out
    assert "4 classes (--class-order): b, c, d, e" in out
    assert "note: heads of 1 classes: a from c" in out
    words = "export-weights o --to torchvision --out back.pth"
    cli.main(words.split())
    assert capsys.readouterr().out == f"{len(state)} tensors: back.pth\n"
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert "exists already" in capsys.readouterr().err
