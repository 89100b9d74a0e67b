"""Submitting without a cluster: names, commands, attempts, and what is refused before anything is sent."""

import types

import pytest

from pipelines import job_cluster, jobs
from pipelines.job_cluster import JobError
from pipelines.jobs import JobsConfig, SubmitConfig
from tests.pipelines.test_job_wheel import write_wheel

KNOWN = ("train", "prepare")
TRAIN = ("train", "small", "--out", "/shared/run")


class Client:
    """What Ray's client does, for jobs whose outcome is given: exit codes in the order of submission."""

    def __init__(self, outcomes=()):
        self.outcomes, self.sent, self.stopped, self.details = list(outcomes), [], [], {}

    def submit_job(self, **job):
        code = self.outcomes.pop(0)
        status = "RUNNING" if code is None else "FAILED" if code else "SUCCEEDED"
        self.sent.append(job)
        self.details[job["submission_id"]] = types.SimpleNamespace(
            submission_id=job["submission_id"], metadata=job["metadata"], entrypoint=job["entrypoint"], status=status,
            driver_exit_code=code, message="ended", start_time=1000 * len(self.sent), end_time=5000,
        )  # fmt: skip

    def list_jobs(self):
        return list(self.details.values())

    def get_job_info(self, job_id):
        return self.details[job_id]

    def get_job_logs(self, job_id):
        return f"log of {job_id}\n"

    def stop_job(self, job_id):
        self.stopped.append(job_id)


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Runs with a client of given outcomes; returns the client, what was said, and the function to submit."""
    wheel = str(write_wheel(tmp_path / "w"))
    monkeypatch.setattr(job_cluster.cluster_access, "require_token", lambda insecure: None)
    monkeypatch.setattr(job_cluster.cluster_access, "check_closed", lambda url, insecure: None)
    monkeypatch.setattr(job_cluster.cluster_access, "ray_version", lambda url: "2.60.0")

    def make(*outcomes):
        client = Client(outcomes)
        monkeypatch.setattr(job_cluster, "JobSubmissionClient", lambda url: client)
        said = []

        def submit(command=TRAIN, **settings):
            return jobs.run(SubmitConfig(wheel=wheel, **settings), command, said.append, said.append)

        return client, said, submit

    return make


def test_the_same_command_is_the_same_job(on):
    client, said, submit = on(1, 0)
    assert (submit().status, submit().status) == ("FAILED", "SUCCEEDED")
    first, second = (job["submission_id"] for job in client.sent)
    assert (first[-2:], second[-2:]) == ("-1", "-2")
    assert first[:-2] == second[:-2] == jobs.name_of(TRAIN) != jobs.name_of((*TRAIN, "--seed", "1"))
    assert client.sent[0]["entrypoint"] == "python -m pipelines train small --out /shared/run"
    (sent,) = client.sent[0]["runtime_env"]["py_modules"]
    assert "maskray-0.1.0+h" in sent
    assert f"log of {first}\n" in said


def test_a_running_job_is_followed_not_started_again(on):
    client, said, submit = on(None)
    submit(detach=True)
    assert submit(detach=True).id == client.sent[0]["submission_id"]
    assert len(client.sent) == 1
    assert "runs already" in said[-1]


@pytest.mark.parametrize("detach", [False, True])
def test_retries_are_the_jobs_own_so_that_nobody_must_wait(on, detach):
    client, _, submit = on(0)
    submit(retries=3, detach=detach)
    assert client.sent[0]["entrypoint"] == "python -m pipelines.attempts 3 -- train small --out /shared/run"
    # Enough to write a checkpoint after `jobs --stop`.
    assert client.sent[0]["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"


def test_a_name_that_runs_another_command_is_refused(on):
    client, _, submit = on(None)
    submit(name="mine", detach=True)
    with pytest.raises(JobError, match=r"mine-1 runs another command \(maskray train small .*choose another --name"):
        submit(("prepare", "coco"), name="mine", detach=True)
    assert len(client.sent) == 1


def test_a_name_that_looks_like_an_attempt_is_a_name(on):
    client, _, submit = on(0, None, None)
    submit(name="run")
    submit(name="run-1", detach=True)
    assert [job["submission_id"] for job in client.sent] == ["run-1", "run-1-1"]
    (found,) = jobs.manage(JobsConfig(stop="run-1"), lambda line: None, print)
    assert found.id == "run-1-1"
    submit(name="other", detach=True)
    (found,) = jobs.manage(JobsConfig(stop="other-1"), lambda line: None, print)
    assert found.id == "other-1"


def test_what_ray_refuses_is_one_line(on):
    client, _, submit = on(0)

    def refuse(**_):
        raise RuntimeError("Request failed with status code 500:\nTraceback")

    client.submit_job = refuse
    with pytest.raises(JobError, match=r"^http://127.0.0.1:8265 refused: Request failed with status code 500:$"):
        submit()


def test_a_log_is_said_once_over_a_broken_connection(on, monkeypatch):
    client, said, submit = on(None)
    job = submit(detach=True)
    said.clear()
    tails = [["one\n", "two\n", None], ["one\ntw", "o\nthree\n"]]

    async def tail(job_id):
        for text in tails.pop(0):
            if text is None:
                raise ValueError("the connection broke")
            yield text
        client.details[job_id].status = "SUCCEEDED"

    client.tail_job_logs = tail
    client.get_job_logs = lambda job_id: "one\ntwo\nthree\nfour\n"
    monkeypatch.setattr(job_cluster, "_POLL_S", 0.0)
    job_cluster.Cluster("").follow(job.id, said.append)
    assert "".join(said) == "one\ntwo\nthree\nfour\n"


def test_jobs_are_found_stopped_and_listed(on):
    client, _, submit = on(None, 0)
    submit(name="mine", detach=True)
    submit(("prepare", "coco"))
    listed = jobs.manage(JobsConfig(), print, print)
    assert next((job.name, job.command) for job in listed) == ("mine", "maskray train small --out /shared/run")
    assert len(listed) == 2
    (stopped,) = jobs.manage(JobsConfig(stop="mine"), lambda line: None, print)
    assert client.stopped == [stopped.id] == ["mine-1"]
    with pytest.raises(JobError, match=r"has no job 'yours': it has mine, prepare-\w+"):
        jobs.manage(JobsConfig(attach="yours"), print, print)


def test_a_cluster_that_is_lost_is_named(on, monkeypatch):
    client, _, submit = on(None)
    job = submit(detach=True)

    def gone(job_id):
        raise ConnectionError("refused\nby the machine")

    client.get_job_info = gone
    monkeypatch.setattr(job_cluster, "_LOST_AFTER_S", 0.0)
    monkeypatch.setattr(job_cluster, "_POLL_S", 0.01)
    with pytest.raises(JobError, match=r"has not answered for 0 s \(refused\): the job may go on; follow it with"):
        job_cluster.Cluster("").follow(job.id, print)


def test_an_old_ray_is_refused(on, monkeypatch):
    on()
    monkeypatch.setattr(job_cluster.cluster_access, "ray_version", lambda url: "2.9.3")
    with pytest.raises(JobError, match=r"runs Ray 2\.9\.3, maskray needs 2\.60 or newer"):
        job_cluster.Cluster("")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "needs a command after --, got none"),
        (("maskray",), "needs a command after --, got none"),
        (("python", "x.py"), "got 'python': one of train, prepare"),
        (("train", "--tracking-uri", "http://me:pass@mlflow"), "holds a password in a URI"),
    ],
)
def test_commands_that_are_refused(words, message):
    with pytest.raises(JobError, match=message) as refused:
        jobs.clean_command(words, KNOWN)
    assert "me:pass" not in str(refused.value)


def test_the_word_maskray_may_stand_before_the_command():
    assert jobs.clean_command(("maskray", "train", "x"), KNOWN) == jobs.clean_command(("train", "x"), KNOWN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retries": -1}, "retries must be >= 0, got -1"),
        ({"name": "a b"}, "name is 'a b', wanted at most 63"),
        ({"env": ("PLAIN",)}, "env takes NAME=VALUE, got 'PLAIN'"),
        ({"env": ("AWS_SECRET_ACCESS_KEY=abc",)}, "looks like a secret"),
        *(
            ({"env": (f"{name}=abc",)}, f"env {name} looks like a secret")
            for name in (
                "RAY_AUTH_TOKEN",
                "OPENAI_KEY",
                "PRIVATE_KEY",
                "DB_PASSPHRASE",
                "PGPASS",
                "PGPASSWORD",
                "MYSQL_PWD",
                "APIKEY",
                "AWS_ACCESS_KEY_ID",
            )
        ),
        ({"env": ("URI=http://me:abc@host",)}, "looks like a secret"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        SubmitConfig(**settings)
    assert "abc" not in str(refused.value)
    SubmitConfig(env=("KEYBOARD=us", "BYPASS=1", "OMP_NUM_THREADS=2", "PGPASSFILE=/etc/p"))
    with pytest.raises(ValueError, match="got both"):
        JobsConfig(attach="a", stop="b")
