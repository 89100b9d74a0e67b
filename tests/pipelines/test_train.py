"""Before any worker starts: data that fit, a folder that is this run's, and what another run's folder says."""

import dataclasses
import math
import typing
from pathlib import Path

import pytest

from model.settings import override
from pipelines import checkpoints, commit, run_file, storage, train, train_feed
from pipelines.config import EvaluationConfig, PseudoConfig, TrainConfig
from pipelines.manifest import ClassInfo, ManifestError
from pipelines.optim import build_optimiser
from pipelines.order import SamplingConfig
from pipelines.run_file import RunConflictError, Tracking
from pipelines.storage import canonical_uri
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
    return run_file.claim(config, [manifest.hash for manifest in train.resolve(config)[1].values()])


def written(config):
    return Path(config.out, "run.json").read_bytes()


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
    said = train._plan(dataclasses.replace(config, optim=optim), resolved)
    assert said == "9 steps of 4 pictures, 4 epochs of 9 pictures, 1 workers, learning rate 0.01 (0.02 x 4/8)"


@pytest.mark.parametrize(
    ("sampling", "an_epoch"),
    [({"repeat_threshold": 1.0}, 12), ({"drop_empty": True}, 9), ({"classes": ("dog",)}, None)],
)
def test_an_epoch_is_as_long_as_sampling_makes_it(config, data, sampling, an_epoch):
    """What an epoch is to the schedule is what the order of samples takes for one."""
    config = dataclasses.replace(
        config, sampling=SamplingConfig(**sampling), optim=dataclasses.replace(config.optim, epochs=8, milestones=(4,))
    )
    feed = train_feed.build_batches(config, tiny_run.CPU)
    length = len(feed._orders[0])
    assert an_epoch in (None, length)
    resolved = train.resolve(config)[0]
    assert resolved.optim.steps == math.ceil(8 * length / 4)
    assert resolved.optim.milestones == (round(4 * length / 4),)
    assert f"epochs of {length} pictures" in train._plan(config, resolved)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metric": "box/mAP"}, "evaluation.metric must be box/ or mask/ and one of AP, AP50, .* got 'box/mAP'"),
        ({"metric": "keypoints/AP"}, "evaluation.metric must be box/ or mask/ and one of"),
        ({"metric": "AP"}, "evaluation.metric must be box/ or mask/"),
        ({"every": 5}, "evaluation.every needs --val: give a prepared"),
        ({"patience": 2}, "evaluation.patience needs evaluation.every: without"),
    ],
)
def test_measuring_that_cannot_be(config, changes, match):
    with pytest.raises(ValueError, match=match):
        train.resolve(dataclasses.replace(config, evaluation=EvaluationConfig(**changes)))


def test_a_detector_without_masks_cannot_be_chosen_by_them(config):
    detector = dataclasses.replace(config.detector, mask=dataclasses.replace(config.detector.mask, enabled=False))
    config = dataclasses.replace(config, detector=detector)
    train.resolve(config)
    with pytest.raises(ValueError, match=r"evaluation.metric must be box/ and one of .* got 'mask/AP'"):
        train.resolve(dataclasses.replace(config, evaluation=EvaluationConfig(metric="mask/AP")))


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("pooler.operation", "pool", r"with detector\.pooler\.operation=pool: its gradient has no deterministic form"),
        ("backbone.deformable_stages", [4], r"with detector\.backbone\.deformable_stages: .* train on CPUs"),
    ],
)
def test_what_has_no_deterministic_form_on_a_gpu_is_refused_before_it_starts(config, path, value, match):
    detector = override(config.detector, path, value)
    config = dataclasses.replace(config, deterministic=True, detector=detector)
    train.resolve(config)
    with pytest.raises(ValueError, match=match):
        train.resolve(dataclasses.replace(config, execution=dataclasses.replace(config.execution, gpu=True)))


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
    made = claim(config)
    first = written(config)
    assert commit.unsealed(first, "run", 1)["tracking"] == {}
    assert made.tracking == claim(config).tracking == Tracking("", "")
    assert written(config) == first
    made.track(Tracking("sqlite:///x.db", "id"))
    assert claim(config).tracking == Tracking("sqlite:///x.db", "id")
    assert run_file.tracking_of(config.out) == ("sqlite:///x.db", "id")


def test_places_and_execution_may_change(config, data, tmp_path):
    claim(config)
    first = written(config)
    copy = tiny_run.dataset(tmp_path / "copy")
    assert copy.manifest.hash == data.manifest.hash
    for changes in (
        {"train": (copy.uri,)},
        {"val": data.uri},
        {"tracking_uri": "sqlite:///x.db"},
        {"execution": dataclasses.replace(config.execution, workers=4, checkpoint_every=7)},
        {"optim": dataclasses.replace(config.optim, max_skipped=40)},
    ):
        claim(dataclasses.replace(config, **changes))
        assert written(config) == first


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
    assert run_file.differences(old, new) == ["b.d was [1], is [2]", "gone was 3, is None", "more was None, is 0"]
    assert run_file.differences(old, old) == []


def old_run(config, data, **changes):
    """A run's file as an older version wrote it, its data being those of today."""
    body = commit.unsealed((Path(__file__).parent / "old_runs" / "version-1.json").read_bytes(), "run", 1)
    body["identity"]["data"] = [data.manifest.hash]
    body["identity"]["config"] |= changes
    Path(config.out).mkdir()
    Path(config.out, "run.json").write_bytes(commit.sealed("run", 1, body))


def test_a_run_of_an_older_version_goes_on(config, data, monkeypatch):
    """Settings that it did not know are at their defaults; any other value of them is another run."""
    old_run(config, data)
    assert claim(train.resolve(config)[0]).tracking.run_id == "0123456789abcdef0123456789abcdef"

    @dataclasses.dataclass(frozen=True)
    class Grown(PseudoConfig):
        added: int = 0

    hints = {**typing.get_type_hints(TrainConfig), "pseudo": Grown}
    monkeypatch.setattr(typing, "get_type_hints", lambda kind: hints if kind is TrainConfig else real(kind))
    grown = dataclasses.replace(train.resolve(config)[0], pseudo=Grown())
    claim(grown)
    with pytest.raises(RunConflictError, match=r"\(config\.pseudo\.added was 0, is 1\)"):
        claim(dataclasses.replace(grown, pseudo=Grown(added=1)))


real = typing.get_type_hints


def test_a_setting_that_is_gone_is_named(config, data):
    old_run(config, data, gone=3)
    with pytest.raises(RunConflictError, match=r"config\.gone was 3, is None"):
        claim(train.resolve(config)[0])


def test_first_weights_are_known_by_their_content(config, tmp_path):
    detector = tiny_run.build()
    for name in ("a", "b"):
        checkpoints.save(str(tmp_path / name), 1, detector, build_optimiser(detector, config.optim), CLASSES)
    checkpoints.save(str(tmp_path / "c"), 2, detector, build_optimiser(detector, config.optim), CLASSES)
    claim(dataclasses.replace(config, init=str(tmp_path / "a")))
    claim(dataclasses.replace(config, init=str(tmp_path / "b")))
    for other in ("", str(tmp_path / "c")):
        with pytest.raises(RunConflictError, match=r"weights\.init was '\w{64}', is "):
            claim(dataclasses.replace(config, init=other))


class Tracked:
    """A tracker that starts where it is said to."""

    def __init__(self, starts):
        self._starts, self.asked = starts, []

    def __call__(self, uri, run_id, name, parent):
        self.asked.append((uri, run_id))
        self.run_id = run_id or (f"run-{len(self.asked)}" if self._starts else "")
        return self

    def __getattr__(self, name):
        return lambda *arguments: None


def test_a_run_has_one_mlflow_run_whenever_tracking_began(config, monkeypatch):
    """Also where the first start could not track; another place is a new run, and said."""
    tracker, said = Tracked(starts=False), []

    def start(uri):
        changed = dataclasses.replace(config, tracking_uri=uri)
        resolved, manifests, _ = train.resolve(changed)
        on_file = run_file.claim(resolved, [manifest.hash for manifest in manifests.values()])
        train._tracker(resolved, on_file, manifests, said.append, "")
        return run_file.claim(resolved, [m.hash for m in manifests.values()]).tracking

    monkeypatch.setattr(train, "Tracker", tracker)
    assert start("http://a") == Tracking("", "")
    tracker._starts = True
    assert [start("http://a") for _ in range(2)] == [Tracking("http://a", "run-2")] * 2
    assert said == []
    assert start("http://b") == start("http://b") == Tracking("http://b", "run-4")
    assert said == ["tracked as a new run at http://b: what came before stays in run run-2 at http://a"]
    runs = ("", "", "run-2", "", "run-4")
    assert tracker.asked == [(f"http://{at}", run) for at, run in zip("aaabb", runs, strict=True)]


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


def test_remote_data_that_do_not_fit_are_shuffled_in_windows_that_a_run_keeps(config, data, tmp_path, monkeypatch):
    manifests = {data.uri: data.manifest}
    total = sum(shard.bytes for shard in data.manifest.shards)
    monkeypatch.setenv("MASKRAY_CACHE_GB", str((total - 1) / 1e9))
    assert train._with_window(config, manifests) == config  # a local set is mapped where it is
    places = storage.is_local
    monkeypatch.setattr(storage, "is_local", lambda filesystem: False)
    first = train._with_window(config, manifests)
    assert first.shuffle_window >= 1
    asked = dataclasses.replace(config, shuffle_window=7)
    assert train._with_window(asked, manifests) == asked
    monkeypatch.setenv("MASKRAY_CACHE_GB", "1")
    assert train._with_window(config, manifests).shuffle_window == 0
    monkeypatch.setattr(storage, "is_local", places)
    run_file.claim(first, [data.manifest.hash])
    monkeypatch.setattr(storage, "is_local", lambda filesystem: False)
    assert train._with_window(config, manifests) == first  # on a machine with more room, too
