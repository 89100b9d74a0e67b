"""Before any worker starts: data that fit, a folder that is this run's, and what another run's folder says."""

import dataclasses

import pytest

from model.settings import override
from pipelines import checkpoints, commit, train
from pipelines.config import EvaluationConfig
from pipelines.manifest import ClassInfo, ManifestError
from pipelines.optim import build_optimiser
from pipelines.storage import canonical_uri
from pipelines.train import RunConflictError
from tests.pipelines import tiny_run, tiny_shards
from tests.pipelines.tiny_shards import CLASSES, record, thing


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data, tmp_path):
    return tiny_run.config(data, tmp_path / "run")


def other_classes(folder, classes):
    return tiny_shards.write_dataset(folder, [[record(1, [thing(1, (2, 3, 20, 30))])]], classes=classes)


def claim(config):
    return train._claim(config, train.resolve(config)[1])


def test_the_number_of_classes_follows_the_data(config, data):
    resolved, manifests, classes = train.resolve(override(config, "detector.num_classes", 80))
    assert resolved.detector.num_classes == 2
    assert classes == CLASSES
    assert manifests == {data.uri: data.manifest}
    assert resolved == override(config, "detector.num_classes", 2)


def test_length_and_rate_become_those_of_the_data(config, data):
    """9 pictures, 4 a step: an epoch is 2.25 steps."""
    optim = dataclasses.replace(config.optim, epochs=4, milestones=(2,), reference_batch=8)
    resolved = train.resolve(dataclasses.replace(config, optim=optim))[0]
    assert (resolved.optim.steps, resolved.optim.milestones) == (9, (4,))
    assert resolved.optim.learning_rate == pytest.approx(config.optim.learning_rate / 2)
    assert train.resolve(resolved)[0] == resolved
    said = train._plan(dataclasses.replace(config, optim=optim), resolved, {data.uri: data.manifest})
    assert said == "9 steps of 4 pictures, 4 epochs of 9 pictures, 1 workers, learning rate 0.01 (0.02 x 4/8)"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metric": "box/mAP"}, "evaluation.metric must be box/ or mask/ and one of AP, AP50, .* got 'box/mAP'"),
        ({"metric": "AP"}, "evaluation.metric must be box/ or mask/"),
        ({"every": 5}, "evaluation.every needs --val: give a prepared"),
        ({"patience": 2}, "evaluation.patience needs evaluation.every: without"),
    ],
)
def test_measuring_that_cannot_be(config, changes, match):
    with pytest.raises(ValueError, match=match):
        train.resolve(dataclasses.replace(config, evaluation=EvaluationConfig(**changes)))


@pytest.mark.parametrize(
    ("field", "match"), [("train", "training needs --train: give prepared"), ("out", "--out: give a")]
)
def test_what_a_training_cannot_do_without(config, field, match):
    with pytest.raises(ValueError, match=match):
        train.resolve(dataclasses.replace(config, **{field: () if field == "train" else ""}))


def test_no_data_set_there(config, tmp_path):
    with pytest.raises(ManifestError, match="is no data set"):
        train.resolve(dataclasses.replace(config, train=(str(tmp_path / "none"),)))


@pytest.mark.parametrize("classes", [CLASSES[:1], CLASSES[::-1], (CLASSES[0], ClassInfo(7, "bird"))])
def test_training_sets_must_share_their_classes(config, tmp_path, classes):
    other = other_classes(tmp_path / "other", classes)
    with pytest.raises(RunConflictError, match=r"other has the classes .* must share ids and names"):
        train.resolve(dataclasses.replace(config, train=(*config.train, other.uri)))
    with pytest.raises(RunConflictError, match=r"other has other classes than .*: evaluate on matching data"):
        train.resolve(dataclasses.replace(config, val=other.uri))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([record(1), dataclasses.replace(record(2), labelled=False)], "has 1 pictures without labels of 2: .* distill"),
        ([], "has 0 pictures without labels of 0: "),
    ],
)
def test_pictures_that_nobody_labelled_are_no_training_data(config, tmp_path, rows, match):
    other = tiny_shards.write_dataset(tmp_path / "other", [rows])
    with pytest.raises(RunConflictError, match=match):
        train.resolve(dataclasses.replace(config, train=(*config.train, other.uri)))


def test_initial_weights_must_be_of_the_datas_classes(config, tmp_path):
    detector = tiny_run.build()
    for classes in (CLASSES, CLASSES[::-1]):
        folder = str(tmp_path / classes[0].name[:3])
        checkpoints.save(folder, 1, detector, build_optimiser(detector, config.optim), classes)
    assert train.resolve(dataclasses.replace(config, init=str(tmp_path / "dog")))[2] == CLASSES
    with pytest.raises(RunConflictError, match=r"has the classes .* leave out --init"):
        train.resolve(dataclasses.replace(config, init=str(tmp_path / "cat")))
    with pytest.raises(checkpoints.CheckpointError, match="holds no finished checkpoint"):
        train.resolve(dataclasses.replace(config, init=str(tmp_path / "none")))


def test_a_folder_is_claimed_once_and_found_again(config, tmp_path):
    path, body = claim(config)
    written = (tmp_path / "run" / "run.json").read_bytes()
    assert path == str(tmp_path / "run" / "run.json")
    assert body == commit.unsealed(written, "run", 1)
    assert body["tracking"] == {}
    assert claim(config) == (path, body)
    assert (tmp_path / "run" / "run.json").read_bytes() == written


def test_places_and_execution_may_change(config, data, tmp_path):
    first = claim(config)
    copy = tiny_run.dataset(tmp_path / "copy")
    assert copy.manifest.hash == data.manifest.hash
    for changes in (
        {"train": (copy.uri,)},
        {"val": data.uri},
        {"tracking_uri": "sqlite:///x.db"},
        {"execution": dataclasses.replace(config.execution, workers=4, checkpoint_every=7)},
    ):
        assert claim(dataclasses.replace(config, **changes)) == first


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("seed", 5, "config.seed was 0, is 5"),
        ("optim.steps", 7, "config.optim.steps was 6, is 7"),
        ("optim.batch", 8, "config.optim.batch was 4, is 8"),
        ("augment.flip", 0.0, "config.augment.flip was 0.5, is 0.0"),
        ("detector.rpn.samples", 16, "config.detector.rpn.samples was 32, is 16"),
        ("precision", "bf16", "config.precision was 'fp32', is 'bf16'"),
    ],
)
def test_another_setting_is_refused_and_shown(config, tmp_path, path, value, shown):
    claim(config)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RunConflictError, match="holds a run with other settings") as caught:
        claim(override(config, path, value))
    assert f"({shown})" in str(caught.value)
    assert "repeat its command to go on with it, or choose another --out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.mark.parametrize("shards", [(5, 3), (4, 5), (5, 4, 1)])
def test_other_data_are_refused(config, data, tmp_path, shards):
    claim(config)
    other = tiny_run.dataset(tmp_path / "other", shards)
    with pytest.raises(RunConflictError, match=rf"data was \['{data.manifest.hash}'\], is \['{other.manifest.hash}'\]"):
        claim(dataclasses.replace(config, train=(other.uri,)))


def test_many_differences_are_cut_short(config):
    claim(config)
    wide = dataclasses.replace(
        config, detector=dataclasses.replace(config.detector, **to_wide(config.detector)), seed=9
    )
    with pytest.raises(RunConflictError, match=r"; .*; .*; .*; .* \.\.\.\): repeat its command"):
        claim(wide)


def to_wide(detector):
    rpn = dataclasses.replace(detector.rpn, samples=1, pre_nms_train=2, pre_nms_test=3, post_nms_train=4)
    return {"rpn": rpn, "box": dataclasses.replace(detector.box, channels=5, samples=6)}


def test_differences_name_each_setting():
    old = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 3}
    new = {"a": 1, "b": {"c": 2, "d": [2]}, "new": None, "more": 0}
    assert train._differences(old, new) == ["b.d was [1], is [2]", "gone was 3, is None", "more was None, is 0"]
    assert train._differences(old, old) == []


def test_a_folder_of_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(RunConflictError, match="holds other files and no training run: choose another --out"):
        claim(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_an_empty_folder_may_be_used(config, tmp_path):
    (tmp_path / "run").mkdir()
    claim(config)


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "{}", '{"identity": 3}', "[" * 100_000])
def test_a_damaged_claim_is_one_clear_line(config, tmp_path, body):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(body)
    with pytest.raises(RunConflictError, match=r"run\.json is damaged .*: choose another --out"):
        claim(config)


def test_paths_are_written_out_for_workers_elsewhere(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = dataclasses.replace(config, train=("d/e", "s3://b/d"), val="v", out="run/", init="", ratio=())
    full = train._with_full_places(short)
    assert full.train == (f"{tmp_path}/d/e", "s3://b/d")
    assert (full.val, full.out, full.init) == (f"{tmp_path}/v", canonical_uri(f"{tmp_path}/run"), "")
    assert train._with_full_places(full) == full
    assert full.identity() == short.identity()
