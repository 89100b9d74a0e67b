"""Everything that reads and writes by URI, against a server that speaks S3's protocol: bytes, resuming, refusals."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import pytest

from pipelines import checkpoints, cli, distill, inspect, loop, predict, prepare, run_report, storage, train
from pipelines.dataset import Dataset
from pipelines.distill_config import DistillConfig
from pipelines.manifest import ManifestError
from pipelines.predict import PredictConfig
from pipelines.predictions import all_pictures
from pipelines.prepare_config import PrepareCoco, PrepareImages
from pipelines.ray_session import ray_session
from tests.pipelines import pool_runs, test_distill, tiny_coco, tiny_run
from tests.pipelines.object_store import KEYS, ROOT, ObjectStore
from tests.pipelines.test_loading import assert_same, batches
from tests.pipelines.test_predict import in_turn, one_by_one

pytestmark = pytest.mark.ray
NAMES = ("1.jpg", "a b.jpg", "c+d.jpg", "e%20f.jpg", "g#h.jpg", "ü/7.jpg", "i&j=k.jpg")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A server, its keys in the environment, its address not: it must come from the URIs."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**KEYS, "MASKRAY_CACHE": str(folder / "cache")}.items():
            patch.setenv(name, value)
        made = ObjectStore(folder / "requests")
        stack.callback(made.close)
        yield made


@pytest.fixture(scope="module")
def source(store, tmp_path_factory):
    """The same pictures with annotations in a local folder and in the bucket `raw`."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "pictures" / "ü").mkdir(parents=True)
    images = [tiny_coco.image(i, file_name=name) for i, name in enumerate(NAMES, start=1)]
    tiny_coco.write(folder, images, pictures=NAMES)
    store.bucket("raw", folder)
    return folder


@pytest.fixture(scope="module")
def local_ray(store):
    with ray_session(num_cpus=2, object_store_memory=200 * 2**20):
        yield


@pytest.fixture
def bucket(store, request):
    """An empty bucket of the test's own."""
    return store.bucket(f"test-{abs(hash(request.node.name)) % 10**12}")


@pytest.fixture
def plan(store, source, bucket):
    """Pictures and annotations in one bucket, the data set in another, below a name that is no plain URI."""
    return PrepareCoco(
        images=store.uri("raw/pictures"), annotations=store.uri("raw/annotations.json"),
        out=store.uri(f"{bucket}/my data/ü"), rows_per_shard=3,
    )  # fmt: skip


def local_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(dataset):
    return [dataset.record(i) for i in range(len(dataset))]


def test_a_data_set_in_a_bucket_is_the_one_on_a_disk(store, source, plan, bucket, local_ray, tmp_path):
    made = prepare.run(plan)
    assert (made.rows_in, made.rows_rejected, [s.rows for s in made.shards]) == (7, 0, [3, 3, 1])
    there = store.files(f"{bucket}/my data/ü")
    assert prepare.run(dataclasses.replace(plan, out=str(tmp_path / "out"))) == made
    assert local_files(tmp_path / "out") == there
    pictures, annotations = str(source / "pictures"), str(source / "annotations.json")
    prepare.run(dataclasses.replace(plan, images=pictures, annotations=annotations, out=str(tmp_path / "from_disk")))
    remote, local = Dataset(plan.out), Dataset(str(tmp_path / "from_disk"))
    for one, other in zip(records(remote), records(local), strict=True):
        assert (one.image_id, one.image, one.file_name) == (other.image_id, other.image, other.file_name)
    assert prepare.run(plan) == made
    assert store.files(f"{bucket}/my data/ü") == there


def test_what_was_written_is_not_written_again(store, plan, bucket, local_ray, tmp_path):
    whole = prepare.run(dataclasses.replace(plan, out=str(tmp_path / "out")))

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.run(plan, on_progress=stop)
    left = store.files(f"{bucket}/my data/ü")
    ended = sorted(name for name in left if name.endswith(".arrow"))
    assert ended
    assert "manifest.json" not in left
    with pytest.raises(ManifestError, match=r"it has no manifest.json; run `maskray prepare`"):
        Dataset(plan.out)
    damaged = f"{bucket}/my data/ü/{ended[0]}"
    store.put(damaged, left[ended[0]][:-100])
    before = len(store.requests())
    assert prepare.run(plan) == whole
    written = [path for method, path in store.requests()[before:] if method == "PUT" and ".arrow" in path]
    assert [ended[0] in path for path in written].count(True) == 1
    assert not any(name in path for path in written for name in ended[1:])
    assert local_files(tmp_path / "out") == store.files(f"{bucket}/my data/ü")


@pytest.mark.parametrize(
    ("place", "pictures"),
    [("raw", 7), ("raw/pictures/", 7), ("raw/pictures/*.jpg", 7), ("raw/pict*/%C3%BC/*", 1), ("raw/pictures/ü", 1)],
)
def test_pictures_are_found_in_folders_and_by_globs(store, bucket, local_ray, place, pictures):
    made = prepare.run(PrepareImages(images=store.uri(place), out=store.uri(f"{bucket}/out")))
    assert (made.rows_in, made.rows_written) == (pictures, pictures)


def test_names_that_no_object_has_reject_their_picture(store, source, bucket, local_ray):
    names = ["1.jpg", "none.jpg", "ü", "x" * 1025, "\udcff.jpg", "../annotations.json", "a\nb"]
    listed = {"images": [tiny_coco.image(i, file_name=name) for i, name in enumerate(names)]}
    store.put(f"{bucket}/list.json", json.dumps(listed).encode())
    out = store.uri(f"{bucket}/out")
    made = prepare.run(
        PrepareCoco(images=store.uri("raw/pictures"), annotations=store.uri(f"{bucket}/list.json"), out=out,
                    max_rejected=1.0)
    )  # fmt: skip
    assert (made.rows_written, made.rows_rejected) == (1, len(names) - 1)
    assert sorted(lost.image_id for lost in Dataset(out).rejections()) == list(range(1, len(names)))


def test_the_endpoint_may_stand_in_the_environment(store, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
    data = tiny_run.dataset(f"s3://{bucket}/d")
    assert data.manifest == Dataset(store.uri(f"{bucket}/d")).manifest
    checkpoint = pool_runs.save(f"s3://{bucket}/run")
    assert checkpoints.load(checkpoint).hash == checkpoints.load(store.uri(f"{bucket}/run")).hash


@pytest.mark.soak
def test_a_command_in_its_own_process_takes_the_endpoint_from_the_environment(store, source, bucket):
    """As for MinIO and others: keys and endpoint in the environment, of the workers too; the result is looked at."""
    out = f"s3://{bucket}/out put"
    words = ["prepare", "coco", "--images", "s3://raw/pictures", "--annotations", "s3://raw/annotations.json"]
    env = {**os.environ, "AWS_ENDPOINT_URL": f"http://{store.address}", "PYTHONPATH": str(ROOT)}
    asked = [sys.executable, "-m", "pipelines", *words, "--out", out, "--num-cpus", "1"]
    ended = subprocess.run(asked, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"1 shards, 2 classes: {out}" in ended.stdout
    assert Dataset(store.uri(f"{bucket}/out put")).manifest.rows_written == 7


def test_inspecting_finds_a_damaged_object(store, source, bucket, local_ray, capsys):
    out = store.uri(f"{bucket}/d")
    made = prepare.run(PrepareImages(images=store.uri("raw/pictures"), out=out))
    cli.main(["inspect", out, "--verify", "--gallery", store.uri(f"{bucket}/gallery of d.html")])
    said = capsys.readouterr().out
    assert "7 in = 7 written" in said
    assert "problems" not in said
    assert f"gallery: {store.uri(f'{bucket}/gallery%20of%20d.html')}" in said
    assert store.files(bucket)["gallery of d.html"].startswith(b"<!DOCTYPE html>")
    name = made.shards[0].file
    content = bytearray(store.files(bucket)[f"d/{name}"])
    content[len(content) // 2] ^= 1
    store.put(f"{bucket}/d/{name}", bytes(content))
    problems = inspect.run(inspect.InspectConfig(out, verify=True)).problems
    assert any(f"{name} does not match its sha256" in problem for problem in problems)


def test_a_shard_is_fetched_once_and_gives_the_batches_of_the_disk(store, bucket, tmp_path):
    local, remote = tiny_run.dataset(tmp_path / "d"), tiny_run.dataset(store.uri(f"{bucket}/d"))
    assert remote.manifest.hash == local.manifest.hash
    before = len(store.requests())
    for step in range(3):
        assert_same(batches(remote)[step], batches(local)[step])
    again = Dataset(remote.uri)
    assert [record.image for record in records(again)] == [record.image for record in records(local)]
    gets = [path for method, path in store.requests()[before:] if method == "GET" and "shard-" in path]
    assert sorted(gets) == [f"/{bucket}/d/shard-0000{number}.arrow" for number in range(2)]


def test_a_run_in_a_bucket_goes_on_and_ends_as_on_a_disk(store, bucket, tmp_path):
    data = tiny_run.dataset(store.uri(f"{bucket}/d"))

    def fit(out, supervisor=None):
        loop.fit(tiny_run.job(tiny_run.config(data, out)), tiny_run.CPU, lambda row: None, supervisor)
        return checkpoints.load(str(out))

    class Killed(loop.Supervisor):
        def at(self, step, phase):
            if step == 4:
                raise KeyboardInterrupt

    run = store.uri(f"{bucket}/a run")
    with pytest.raises(KeyboardInterrupt):
        fit(run, Killed())
    assert checkpoints.steps(run) == [2]
    first = store.files(f"{bucket}/a run")
    ended, local = fit(run), fit(tmp_path / "run")
    assert (ended.step, ended.files) == (6, local.files)
    assert store.files(f"{bucket}/a run").items() >= first.items()
    assert store.files(f"{bucket}/a run") == local_files(tmp_path / "run")
    assert checkpoints.retain(run, 1, {2}) == [4]
    assert checkpoints.steps(run) == [2, 6]
    assert not [name for name in store.files(f"{bucket}/a run") if "step-00000004" in name]
    store.put(f"{bucket}/a run/checkpoints/step-00000006/{ended.stored(checkpoints.MODEL_FILE)}", b"cut")
    assert "does not match the sha256" in checkpoints.set_damaged_aside(run)[0]
    assert checkpoints.load(run).step == 2


@pytest.fixture
def alone(monkeypatch):
    """Stands for Ray: one worker, one shard after the other."""
    monkeypatch.setattr(predict, "_label_all", in_turn)
    monkeypatch.setattr(predict, "run_shards", one_by_one)
    monkeypatch.setattr(predict, "ray_session", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(distill, "_facts", test_distill.by_one_process)
    monkeypatch.setattr(distill, "ray_session", lambda address: contextlib.nullcontext())


def labelled_and_distilled(place):
    """Predictions of a tiny detector on a pool, and the labels chosen of them, all below one place."""
    pool = test_distill.pool(storage.child_uri(place, "pool"))
    people = test_distill.labelled(storage.child_uri(place, "people"))
    teacher = pool_runs.save(storage.child_uri(place, "teacher"))
    asked = PredictConfig(teacher, pool.uri, storage.child_uri(place, "labels"), results=True)
    found = predict.run(asked)
    assert predict.run(asked) == found
    chosen = DistillConfig(
        asked.out, pool.uri, people.uri, storage.child_uri(place, "pseudo"), teacher=teacher, min_score=0.0, review=2
    )
    made = distill.run(chosen)
    assert distill.run(chosen) == made
    return found, Dataset(chosen.out)


def test_labels_made_in_a_bucket_are_those_of_the_disk(store, bucket, alone, tmp_path):
    there, pseudo = labelled_and_distilled(store.uri(f"{bucket}/a pool"))
    here, wanted = labelled_and_distilled(str(tmp_path / "a pool"))
    assert there == here
    assert [r.instances for r in records(pseudo)] == [r.instances for r in records(wanted)]
    assert pseudo.manifest.class_counts == wanted.manifest.class_counts != (0, 0)
    written, local = store.files(f"{bucket}/a pool"), local_files(tmp_path / "a pool")
    assert written.keys() == local.keys()
    assert {name for name in local if written[name] != local[name] and name.startswith(("labels", "pool"))} == set()


@pytest.mark.soak
def test_the_whole_road_on_ray(store, bucket, local_ray, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    data = tiny_run.dataset(store.uri(f"{bucket}/d"))
    config = tiny_run.config(data, store.uri(f"{bucket}/a run"), optim={"steps": 4})
    made = train.run(config)
    assert train.run(config) == made
    assert checkpoints.load(made.checkpoint).step == 4
    labels = predict.run(PredictConfig(config.out, data.uri, store.uri(f"{bucket}/labels")))
    assert len(list(all_pictures(store.uri(f"{bucket}/labels"), labels))) == 9
    assert run_report.run(run_report.ReportConfig(config.out)) == store.uri(f"{bucket}/a%20run/report.html")


def ends(words, capsys):
    """Exit code and the line on standard error of a command, and its seconds."""
    begun = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return ended.value.code, line, time.monotonic() - begun


def prepares(store, **changes):
    given = {"images": store.uri("raw/pictures"), "annotations": store.uri("raw/annotations.json"), **changes}
    return ["prepare", "coco", *(word for name, value in given.items() for word in (f"--{name}", value))]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"out": "nope/out"}, 1, "AWS Error NO_SUCH_BUCKET .*; create the bucket, or correct its name$"),
        ({"images": "nope/pictures", "out": "raw/out"}, 2, "there is no folder s3://nope/pictures.*: give the folder"),
        ({"images": "raw/none", "out": "raw/out"}, 2, "there is no folder s3://raw/none.*: give the folder"),
        ({"annotations": "nope/a.json", "out": "raw/out"}, 2, "there is no annotation file s3://nope/a.json"),
        ({"annotations": "raw/a.json", "out": "raw/out"}, 2, "there is no annotation file s3://raw/a.json"),
        ({"out": "raw/a#b"}, 2, "in a URI a # begins another part and a % an escape; write %23 for the sign #"),
        ({"out": "raw/50%"}, 2, "in a URI a # begins another part and a % an escape"),
        ({"out": "raw/a//b"}, 2, "no bucket or folder of an object store has the name ''"),
        ({"out": "raw/../b"}, 2, r"no bucket or folder of an object store has the name '', '\.' or '\.\.'"),
        ({"out": ""}, 2, "Missing bucket name in S3 URI; give a local path or a URI such as s3://bucket/folder"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(store, source, capsys, changes, code, message):
    found, line, seconds = ends(prepares(store, **{k: store.uri(v) for k, v in changes.items()}), capsys)
    assert re.search(message, line.rstrip()), line
    assert (found, seconds < 10) == (code, True)


def test_a_data_set_that_is_not_there_is_said_in_one_line(store, source, capsys):
    for place in ("nope/d", "raw/d"):
        code, line, seconds = ends(["inspect", store.uri(place)], capsys)
        assert (code, seconds < 10) == (2, True)
        assert f"{place} is no data set: it has no manifest.json; run `maskray prepare`" in line


def test_keys_that_do_not_fit_are_said_in_one_line(store, source, bucket, capsys):
    data = tiny_run.dataset(store.uri(f"{bucket}/d"))
    store.ask_for_known_keys(after=0)
    try:
        for words in (["inspect", data.uri], prepares(store, out=store.uri(f"{bucket}/out"))):
            code, line, seconds = ends(words, capsys)
            assert (code, seconds < 10) == (1, True)
            assert "AWS Error ACCESS_DENIED" in line
            assert "check that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role, belong to" in line
    finally:
        store.ask_for_known_keys(after="inf")


def test_a_store_that_does_not_answer_is_said_in_one_line(capsys):
    """After the client's own three tries."""
    code, line, seconds = ends(["inspect", "s3://bucket/d?endpoint_override=127.0.0.1:9&scheme=http"], capsys)
    assert (code, seconds < 30) == (1, True)
    assert "check the network, the region, and the endpoint in AWS_ENDPOINT_URL or ?endpoint_override=HOST" in line
