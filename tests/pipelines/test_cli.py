"""The command line without Ray: what it lists, explains, refuses in one line, and how the process ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli, demo, distill, distill_config, evaluate, inspect, predict, prepare, prepare_config, train
from pipelines.coco_metrics import STAT_NAMES, Metrics
from pipelines.config import Precision
from pipelines.optim import Algorithm
from pipelines.predictions import PredictionsManifest
from pipelines.presets import PRESETS, preset
from tests.pipelines import real_data, tiny_coco, tiny_run
from tests.pipelines.tiny_shards import detected, record, write_dataset, write_predictions

ROOT = Path(cli.__file__).parents[1]
FORMS = [
    "demo",
    "generate cityscapes",
    "prepare coco",
    "prepare images",
    "inspect",
    "train small_mask_rcnn_r18_fpn",
    "evaluate",
    "predict",
    "distill",
    "import",
    "export-weights",
    "report",
]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("MASKRAY_TRACEBACK", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def ends(words, capsys):
    """Exit code, standard output and standard error of a command line."""
    try:
        cli.main(words.split() if isinstance(words, str) else words)
    except SystemExit as end:
        code = end.code
    else:
        code = 0
    return (code, *capsys.readouterr())


@pytest.fixture
def asked(monkeypatch):
    """Keeps the config that a command would run with, and stops there."""
    seen = []

    class AskedError(Exception):
        pass

    def run(config, *rest, **options):
        seen.append(config)
        raise AskedError

    for module in (demo, distill, evaluate, inspect, predict, prepare, train):
        monkeypatch.setattr(module, "run", run)

    def ask(words):
        seen.clear()
        with pytest.raises(AskedError):
            cli.main(words.split())
        return seen[0]

    return ask


def test_help_lists_every_command(capsys):
    for words in ("-h", "--help"):
        code, out, err = ends(words, capsys)
        assert (code, err) == (0, "")
        assert all(f"\n{name} " in out for name in cli.COMMANDS)
    code, out, _ = ends("", capsys)
    assert code == 2
    assert "usage: maskray COMMAND" in out


@pytest.mark.parametrize("form", FORMS)
def test_each_command_explains_itself(form, capsys):
    code, out, err = ends(f"{form} --help", capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: maskray {form} ")
    assert "Attributes:" not in out


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("prepare", ["coco", "images"]),
        ("generate", ["cityscapes", "nuimages"]),
        ("train", ["list presets"]),
        ("list", ["presets"]),
    ],
)
def test_commands_of_two_words_list_the_second(command, choices, capsys):
    code, out, err = ends(f"{command} --help", capsys)
    assert (code, err) == (0, "")
    assert all(choice in out for choice in choices)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fly", f"needs a command, got 'fly': one of {', '.join(cli.COMMANDS)}"),
        ("train", rf"train needs a preset, got none: one of the {len(PRESETS)} that `maskray list presets` shows"),
        ("train resnet", rf"unknown preset 'resnet': .*`maskray list presets` shows all {len(PRESETS)}"),
        ("list presets dog", f"no preset has 'dog': use fewer words, or none to list all {len(PRESETS)}"),
        ("prepare lvis", "prepare needs a source, got 'lvis': one of coco, cityscapes, nuimages, images"),
        ("list dogs", "list needs a kind, got 'dogs': one of presets, datasets, sweeps"),
        ("evaluate --annotations a --results b", "there is no file a: give a COCO json file"),
        ("inspect none", ".*none is no data set: it has no manifest.json; run `maskray prepare` .*"),
        ("predict --checkpoint a --data b --out c", ".*b is no data set.*"),
        ("distill --predictions a --pool b --labelled c --out d", ".*b is no data set.*"),
        ("train small_mask_rcnn_r18_fpn", "training needs --train: give prepared data sets"),
        ("train small_mask_rcnn_r18_fpn --train a", "training needs --out: give a folder"),
        ("train small_mask_rcnn_r18_fpn --train a --out b", ".*a is no data set.*"),
        ("prepare coco --images a --annotations b --out c", "there is no folder a: .*"),
        ("prepare images --images a --out c", "cannot list a.*"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = ends(words, capsys)
    assert code == 2
    assert err.count("\n") == 1
    assert re.fullmatch(f"maskray: {message}", err.rstrip("\n")), err
    assert out.count("\n") <= 1  # train says what it is about to do
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate", "needs either --checkpoint, --data and --out, or --annotations and --results, got none of them"),
        ("evaluate --checkpoint a --data b", "or --annotations and --results, got --checkpoint, --data"),
        ("predict --checkpoint a --data b --out c --batch 0", "predict needs batch >= 1"),
        ("distill --predictions a --pool b --labelled c --out d --min-score 2", "distill needs 0 <= min-score"),
        ("train small_mask_rcnn_r18_fpn --optim.batch 5 --execution.workers 6", "optim.batch (5) must give"),
        ("train small_mask_rcnn_r18_fpn --detector.rpn.nms-iou 7", "rpn.nms_iou must be in 0..1, got 7.0"),
        ("demo --steps 0", "demo needs steps >= 1, got 0"),
        ("demo --out s3://b/c", "demo writes to a local folder, got 's3://b/c': give a path"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(words, message, capsys):
    code, out, err = ends(words, capsys)
    assert (code, out) == (2, "")
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("predict --nope 3", "--nope"),
        ("predict --data d --out o", "--checkpoint"),
        ("predict --checkpoint a --data b --out c --batch many", "many"),
        ("train small_mask_rcnn_r18_fpn --optim.algorithm adam", "adamw"),
        ("train small_mask_rcnn_r18_fpn --optim.learning-rat 1", "learning-rate"),
    ],
)
def test_words_that_are_no_options_end_with_2(words, named, capsys):
    code, out, err = ends(words, capsys)
    assert code == 2
    assert named in out + err


def test_what_a_store_refuses_is_one_line_and_no_fault_of_the_words(capsys, monkeypatch):
    def refused(config):
        raise PermissionError(13, "Permission denied", "/data/x")

    monkeypatch.setattr(predict, "run", refused)
    code, _, err = ends("predict --checkpoint a --data b --out c", capsys)
    assert (code, err) == (1, "maskray: [Errno 13] Permission denied: '/data/x'\n")


def test_an_interruption_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "run", interrupted)
    code, _, err = ends("predict --checkpoint a --data b --out c", capsys)
    assert (code, err) == (130, "maskray: interrupted; the same command goes on where it stopped\n")


def test_a_fault_of_our_own_is_not_hidden(monkeypatch):
    def broken(config):
        raise ZeroDivisionError

    monkeypatch.setattr(predict, "run", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["predict", "--checkpoint", "a", "--data", "b", "--out", "c"])


def test_a_traceback_on_request(monkeypatch):
    monkeypatch.setenv("MASKRAY_TRACEBACK", "1")
    with pytest.raises(ValueError, match="needs a command, got 'fly'"):
        cli.main(["fly"])


def test_messages_of_many_lines_become_one(capsys, monkeypatch):
    def wordy(config):
        raise KeyError("one\n   two\n")

    monkeypatch.setattr(predict, "run", wordy)
    assert ends("predict --checkpoint a --data b --out c", capsys)[2] == "maskray: one two\n"


def test_options_reach_the_config(asked):
    config = asked(
        "predict --checkpoint a --data b --out c --batch 3 --workers 2 --cpus-per-worker 4 --gpu --address auto"
    )
    assert config == predict.PredictConfig(
        checkpoint="a", data="b", out="c", batch=3, workers=2, cpus_per_worker=4, gpu=True, address="auto"
    )
    config = asked("prepare coco --images i --annotations a --out o --rows-per-shard 9 --max-rejected 0.5 --no-shuffle")
    assert config == prepare_config.PrepareCoco(
        images="i", annotations="a", out="o", rows_per_shard=9, max_rejected=0.5, shuffle=False
    )
    assert asked("prepare images --images i --out o --num-cpus 2") == prepare_config.PrepareImages(
        images="i", out="o", num_cpus=2
    )
    assert asked("inspect d --verify --gallery g.html") == inspect.InspectConfig("d", verify=True, gallery="g.html")
    assert asked("evaluate --annotations a --results r") == evaluate.EvaluateConfig(annotations="a", results="r")
    config = asked("distill --predictions a --pool b --labelled c --out d --min-score 0.5 --keep-empty")
    assert config == distill_config.DistillConfig("a", "b", "c", "d", min_score=0.5, keep_empty=True)
    assert asked("demo --out x --steps 3 --workers 1") == demo.DemoConfig(out="x", steps=3, workers=1)


@pytest.mark.parametrize(
    "name", ["small_mask_rcnn_r18_fpn", "nuimages_htc_r50_fpn_1x", "mmdet_mask_rcnn_r50_fpn_amp_lsj_200e"]
)
def test_a_preset_without_options_is_itself(name, asked):
    assert asked(f"train {name}") == preset(name)


def test_training_options_change_one_field_each(asked):
    config = asked(
        "train small_mask_rcnn_r18_fpn --train a b --ratio 6 4 --out o --seed 7 --precision bf16 --optim.algorithm sgd"
        " --optim.milestones 5 9 --augment.short-edges-px 96 128 --detector.rpn.nms-iou 0.6"
        " --detector.backbone.depth 34 --execution.workers 2 --execution.gpu"
    )
    assert (config.train, config.ratio, config.out, config.seed) == (("a", "b"), (6, 4), "o", 7)
    assert (config.precision, config.optim.algorithm) == (Precision.BF16, Algorithm.SGD)
    assert (config.optim.milestones, config.augment.short_edges_px) == ((5, 9), (96, 128))
    assert (config.detector.rpn.nms_iou, config.detector.backbone.depth) == (0.6, 34)
    assert (config.execution.workers, config.execution.gpu) == (2, True)
    base = preset("small_mask_rcnn_r18_fpn")
    assert (config.optim.learning_rate, config.detector.box) == (base.optim.learning_rate, base.detector.box)


def test_presets_are_listed(capsys):
    code, out, _ = ends("list presets", capsys)
    head, *lines = out.split("\n\n")[0].splitlines()
    assert code == 0
    assert head.split()[0] == "preset"
    assert all(line.split()[0] == name for line, name in zip(lines, PRESETS, strict=True))
    assert "maskray measured none of it" in out
    assert ends("list datasets", capsys)[1].split()[1:2] == ["coco"]


def test_presets_are_listed_by_words_with_what_is_odd_about_them(capsys):
    code, out, _ = ends("list presets cascade nuimages 20e", capsys)
    table, noted, _ = out.split("\n\n")
    assert (code, len(table.splitlines())) == (0, 3)
    assert noted.startswith("nuimages_cascade_mask_rcnn_r50_fpn_coco_20e: the same figures")
    assert "\n\n\n" not in ends("list presets mmdet_htc_r50", capsys)[1]


def test_presets_are_listed_as_json(capsys):
    code, out, _ = ends("list presets htc --json", capsys)
    assert code == 0
    assert all("htc" in run["name"] for run in json.loads(out))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_files_are_measured(kind, capsys):
    folder = real_data.test_data() / "coco_eval"
    results = folder / f"instances_val2014_fake{kind}100_results.json"
    words = ["evaluate", "--annotations", str(folder / "instances_val2014_100.json"), "--results", str(results)]
    code, out, err = ends(words, capsys)
    assert (code, err) == (0, "")
    expected = json.loads((folder / "EXPECTED_pycocotools.json").read_text())[kind][:6]
    row = next(line for line in out.splitlines() if line.startswith("box" if kind == "bbox" else "mask"))
    assert row.split()[1:] == [f"{100 * value:.1f}" for value in expected]
    assert out.split()[:6] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def test_metrics_that_do_not_exist_are_a_dash():
    values = dict.fromkeys(STAT_NAMES, 0.12345) | {"APl": -1.0}
    assert cli.metrics_rows("box", Metrics(**values, per_class={})) == ["box", *["12.3"] * 5, "-"]


def test_inspecting_ends_with_1_where_something_is_wrong(tmp_path, capsys):
    data = real_data.prepared(*tiny_coco.write(tmp_path), tmp_path / "d", 3)
    code, out, err = ends(["inspect", data.uri, "--verify"], capsys)
    assert (code, err) == (0, "")
    assert "7" in out
    shard = tmp_path / "d" / data.manifest.shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, out, err = ends(["inspect", data.uri, "--verify"], capsys)
    assert (code, err) == (1, "")
    assert shard.name in out


def test_a_training_of_other_data_is_refused_before_ray_starts(tmp_path, capsys):
    data = tiny_run.dataset(tmp_path / "d")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    words = ["train", "small_mask_rcnn_r18_fpn", "--train", data.uri, "--out", str(tmp_path / "run")]
    code, _, err = ends(words, capsys)
    assert code == 2
    assert err.endswith("holds other files and no training run: choose another --out\n")


def test_finished_predictions_are_reported_without_ray(tmp_path, capsys, monkeypatch):
    data = write_dataset(tmp_path / "d", [[record(1)]])
    uri = write_predictions(tmp_path / "p", data, lambda one: detected(one, [(1, 1, 9, 9)]))
    monkeypatch.setattr(predict, "run", lambda config: PredictionsManifest.load(config.out))
    code, out, _ = ends(["predict", "--checkpoint", "c", "--data", data.uri, "--out", uri], capsys)
    assert (code, out) == (0, f"1 detections on 1 pictures: {uri}\n")


def test_the_module_runs_and_help_is_quick():
    """Help must not wait for torch or Ray to be imported."""
    code = (
        "import sys; from pipelines import cli\ntry:\n cli.main(['--help'])\n"
        "finally:\n print(sorted({'torch', 'ray', 'tyro', 'mlflow'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MASKRAY_TRACEBACK"}
    text = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert text.startswith("usage: maskray COMMAND")
    assert text.endswith("\n[]\n")
    made = subprocess.run(
        [sys.executable, "-m", "pipelines", "nothing"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr.startswith("maskray: needs a command, got 'nothing'")
