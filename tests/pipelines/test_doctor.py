"""The checks on facts given by hand, the facts of this machine, and the whole on local Ray."""

import socket

import pytest

from pipelines import cli, cli_clusters, doctor, node_facts
from pipelines.doctor import DoctorConfig
from pipelines.node_facts import NodeFacts
from pipelines.ray_session import ray_session

SOUND = NodeFacts("n1", "10.0.0.1", {}, "cpu", 0, "eth0", 10**10, "")
RESOURCES = {"CPU": 2.0, "object_store_memory": 1e9}


@pytest.mark.parametrize(
    ("facts", "resources", "failed"),
    [
        ({}, {}, {}),
        ({"operators": "not built"}, {}, {"operators": "install the same wheel"}),
        ({"gpus": 4}, {}, {"GPUs": "start Ray there with --num-gpus"}),
        ({"gpus": 1, "operators": "cpu"}, {"GPU": 1.0}, {"operators": "needs the operators with CUDA"}),
        ({"gpus": 1, "operators": "cpu and cuda"}, {"GPU": 1.0}, {}),
        ({"shared": "Permission denied"}, {}, {"storage": "mount /shared on every node, writable"}),
        ({"interface": ""}, {}, {"network": "no interface has the node's address"}),
        ({"interface": "lo"}, {}, {"network": "others cannot reach a loopback"}),
        ({"shm_bytes": 64 * 2**20}, {}, {"memory": "give the container a larger /dev/shm"}),
        ({}, {"object_store_memory": 1e8}, {"memory": "start Ray with --object-store-memory of 0.2 GB or more"}),
    ],
)
def test_checks_of_a_node(facts, resources, failed):
    config = DoctorConfig(shared="/shared")
    found = list(doctor.check_node("n1", SOUND._replace(**facts), {**RESOURCES, **resources}, 3, config))
    assert {row.check: row.advice for row in found if row.advice}.keys() == failed.keys()
    assert all(failed[row.check] in row.advice for row in found if row.advice)
    assert {row.check for row in found} == {"operators", "GPUs", "storage", "network", "memory"}


def test_a_lone_machine_may_use_its_loopback():
    found = doctor.check_node("n1", SOUND._replace(interface="lo"), RESOURCES, 1, DoctorConfig())
    assert not any(row.advice for row in found)


def test_versions_must_agree():
    one = {"Python": "3.11.7", "torch": "2.15.0", "Ray": "2.60.0"}
    same = list(doctor.check_versions({"n1": one, "n2": {**one, "Python": "3.11.9"}}))
    assert [row.advice for row in same] == [""] * 3
    other = list(doctor.check_versions({"n1": one, "n2": {**one, "torch": "2.11.0"}}))
    (bad,) = (row for row in other if row.advice)
    assert (bad.found, bad.advice) == ("torch 2.15.0 on n1; 2.11.0 on n2", "use one image: torch must be the same")
    missing = list(doctor.check_versions({"n1": {"torch": "missing"}, "n2": {"torch": "missing"}}))
    assert missing[0].advice


def test_facts_of_this_machine(tmp_path):
    assert node_facts.interface_of("127.0.0.1") == "lo"
    assert node_facts.interface_of("203.0.113.9") == ""
    (tmp_path / "driver").touch()
    found = NodeFacts(**node_facts.measure("127.0.0.1", str(tmp_path), "mine", "driver"))
    assert (found.host, found.interface, found.shared) == (socket.gethostname(), "lo", "")
    assert found.operators.startswith("cpu")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_place_that_is_not_shared_is_told(tmp_path):
    assert node_facts.check_shared(str(tmp_path), "mine", "driver") == "it is another place than the driver's"
    (tmp_path / "file").touch()
    assert "file" in node_facts.check_shared(str(tmp_path / "file" / "below"), "mine", "driver")


def test_ranges_are_checked():
    with pytest.raises(ValueError, match="needs cpus >= 0 and gpus >= 0, got 1 and -1"):
        DoctorConfig(gpus=-1)


@pytest.mark.ray
def test_the_command_on_this_machine(tmp_path, capsys):
    cli.main(["doctor", "--shared", str(tmp_path)])
    out = capsys.readouterr().out
    assert "FAILED" not in out
    assert "written and read" in out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--gpus", "64"])
    assert end.value.code == 1
    assert "GPUs of cluster: add nodes, or ask for fewer: 64 are wanted" in capsys.readouterr().out


@pytest.mark.ray
def test_a_silent_node_and_an_unwritable_folder_do_not_hide_the_rest(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with ray_session(num_cpus=1):
        (row,) = [
            row for row in doctor.run(DoctorConfig(shared=str(tmp_path / "file" / "x"))) if row.check == "storage"
        ]
        assert "file" in row.found
        assert "writable" in row.advice
        monkeypatch.setattr(doctor, "_PROBE_TIMEOUT_S", 0.0)
        rows = {row.check: row for row in doctor.run(DoctorConfig())}
    assert rows["answer"].found == "silent for 0 s"
    assert "CPUs" in rows


def test_a_check_from_afar_is_a_job_that_runs_as_others_do(monkeypatch):
    sent = []
    monkeypatch.setattr(cli_clusters, "submit", lambda words, known: sent.append(words))
    cli_clusters.doctor(["--address", "http://h:8265", "--operators", "image", "--wheel", "w.whl", "--python", "/p"])
    text = " ".join(sent[0])
    assert "--operators image --python /p --wheel w.whl" in text.partition(" -- ")[0]
    assert text.partition(" -- ")[2] == "doctor --cpus 1 --gpus 0"
