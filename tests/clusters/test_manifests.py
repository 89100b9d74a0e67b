"""Manifests hold before a cloud sees them: Ray's own validation, KubeRay's published schemas, our command line."""

import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines import cli, demo, distill, doctor, evaluate, import_weights, jobs, predict, prepare, train, tune
from pipelines.doctor import DoctorConfig
from tests.clusters import manifests
from tests.clusters.manifests import CLUSTERS, replaced

LAUNCHER_KEYS = ("setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
                 "worker_start_ray_commands", "initialization_commands")  # fmt: skip
BROKEN_LAUNCHERS = {
    "unknown key": (("dashboard_host",), "0.0.0.0"),
    "unknown provider": (("provider", "type"), "clod"),
    "head that is no node type": (("head_node_type",), "boss"),
    "fractional GPUs": (("available_node_types", "gpu", "resources", "GPU"), 0.5),
    "unknown key of a node type": (("available_node_types", "gpu", "spot"), True),
    "more least workers than most": (("available_node_types", "gpu", "min_workers"), 99),
    "docker without a container name": (("docker", "container_name"), None),
}


def check_launcher(config):
    validate_config(prepare_config(config))


@pytest.mark.parametrize("name", manifests.LAUNCHERS)
def test_ray_accepts_the_launcher_files(name):
    check_launcher(manifests.load(name))


@pytest.mark.parametrize("name", manifests.LAUNCHERS)
@pytest.mark.parametrize(("path", "value"), BROKEN_LAUNCHERS.values(), ids=BROKEN_LAUNCHERS)
def test_ray_refuses_mutated_launcher_files(name, path, value):
    with pytest.raises((jsonschema.ValidationError, ValueError, AssertionError, NotImplementedError)):
        check_launcher(replaced(manifests.load(name), path, value))


@pytest.mark.parametrize("name", manifests.LAUNCHERS)
def test_launchers_are_closed_to_the_network_and_leave_nothing_to_defaults(name):
    config = manifests.load(name)
    assert all(key in config for key in LAUNCHER_KEYS)
    # What Ray fills in must not change what is written.
    filled = prepare_config(config)
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert filled[key] == config[key]
    assert not filled["head_setup_commands"]
    assert not filled["worker_setup_commands"]
    assert "0.0.0.0" not in yaml.safe_dump(filled)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[key] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token ray start" in starts[0]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert config["provider"]["use_internal_ips"] is True
    kinds = config["available_node_types"]
    spot = {kind for kind, node in kinds.items() if re.search("spot", str(node["node_config"]), re.IGNORECASE)}
    assert spot == {"gpu", "cpu"}
    assert kinds["head"]["resources"]["CPU"] == 0


def strict(schema):
    """A CRD's schema as JSON schema that refuses unknown fields, as the API server does under strict validation."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema.get("type"), str) and "additionalProperties" not in schema:
        made["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return made


@pytest.fixture(scope="module")
def crds():
    root = os.environ.get("MASKRAY_TEST_DATA")
    if not root:
        pytest.skip("MASKRAY_TEST_DATA is not set: the schemas of KubeRay are not here")
    validators = {}
    for path in (Path(root) / "kuberay_crds").glob("*.yaml"):
        crd = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]  # in C: they are long
        (version,) = (version for version in crd["versions"] if version["name"] == "v1")
        schema = strict(version["schema"]["openAPIV3Schema"])
        # Kubernetes itself checks metadata, which a CRD's schema leaves open.
        schema["properties"]["metadata"] = {"type": "object"}
        validators[crd["names"]["kind"]] = jsonschema.Draft7Validator(schema)
    return validators


RAY_KINDS = [*manifests.kuberay("RayCluster"), *manifests.kuberay("RayJob")]


@pytest.mark.parametrize("name", RAY_KINDS)
def test_kuberay_accepts_its_manifests(name, crds):
    manifest = manifests.load(f"kuberay/{name}")
    assert manifest["apiVersion"] == "ray.io/v1"
    assert [error.message for error in crds[manifest["kind"]].iter_errors(manifest)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entrypoints"), "maskray demo"),
        (("spec", "submissionMode"), 3),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replica"), 1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "two"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 1, "emptyDir", "size"), "1Gi"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "name"), None),
    ],
)
def test_kuberay_refuses_mutated_manifests(path, value, crds):
    assert list(crds["RayJob"].iter_errors(replaced(manifests.load("kuberay/train.yaml"), path, value)))


def cluster_of(manifest):
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


@pytest.mark.parametrize("name", RAY_KINDS)
def test_clusters_on_kubernetes_are_safe_and_share_storage(name):
    manifest = manifests.load(f"kuberay/{name}")
    cluster = cluster_of(manifest)
    assert cluster["authOptions"] == {"mode": "token"}
    (claim,) = (manifests.load("kuberay/storage.yaml")["metadata"]["name"],)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        (container,) = pod["containers"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/shared", "/dev/shm"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"] == container["resources"]["requests"]
        wants_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-cuda" if wants_gpu else "-cpu")
        assert wants_gpu == bool(pod.get("tolerations"))
    if manifest["kind"] == "RayJob":
        # Kueue admits a job as a whole: it starts suspended and its groups cannot grow.
        assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
        assert manifest["spec"]["suspend"] is manifest["spec"]["shutdownAfterJobFinishes"] is True
        assert all(g["replicas"] == g["minReplicas"] == g["maxReplicas"] for g in cluster["workerGroupSpecs"])
    else:
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert {group["groupName"] for group in cluster["workerGroupSpecs"]} == {"gpu", "cpu"}


def test_images_are_of_this_version_and_ray_of_the_tested_one():
    pyproject = (CLUSTERS.parent / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', pyproject, re.MULTILINE)[1]
    ray = re.search(r"^ray==(\S+?);", (CLUSTERS.parent / "constraints.txt").read_text(), re.MULTILINE)[1]
    texts = {path.name: path.read_text() for path in CLUSTERS.rglob("*.yaml")}
    images = [image for text in texts.values() for image in re.findall(r"maskray:([\w.-]+)", text)]
    assert len(images) > 8
    assert {image.rsplit("-", 1)[0] for image in images} == {version}
    assert {cluster_of(manifests.load(f"kuberay/{name}"))["rayVersion"] for name in RAY_KINDS} == {ray}


@pytest.mark.parametrize("name", manifests.GUIDES)
def test_guides_name_all_that_must_be_filled_in(name):
    folder = (CLUSTERS / name).parent
    files = folder.glob("*.yaml") if folder != CLUSTERS else CLUSTERS.glob(f"{Path(name).stem}.yaml")
    wanted = {word for file in files for word in re.findall(r"YOUR_[A-Z_]+", file.read_text())}
    assert wanted <= set(re.findall(r"YOUR_[A-Z_]+", (CLUSTERS / name).read_text()))


COMMANDS = [
    *(
        pytest.param(command, id=f"{name}-{command[0]}")
        for name in manifests.kuberay("RayJob")
        for command in manifests.entrypoint_commands(manifests.load(f"kuberay/{name}")["spec"]["entrypoint"])
    ),
    *(pytest.param(command, id=f"{name}-{at}-{command[0]}") for name in manifests.GUIDES
      for at, command in enumerate(manifests.guide_commands(name))),
]  # fmt: skip
RUNS = (demo, distill, doctor, evaluate, import_weights, predict, prepare, train, tune)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_real_with_real_flags(command, monkeypatch):
    class ParsedError(Exception):
        pass

    def parsed(*_, **__):
        raise ParsedError

    for module in RUNS:
        monkeypatch.setattr(module, "run", parsed)
    # What is submitted is parsed here too, where the job would do so.
    monkeypatch.setattr(jobs, "run", lambda config, words, *_: cli.COMMANDS[words[0]].run(words[1:]))
    monkeypatch.setattr(DoctorConfig, "is_remote", False)
    with pytest.raises(ParsedError):
        cli.COMMANDS[command[0]].run(command[1:])


def test_every_job_runs_a_command():
    assert len([*manifests.kuberay("RayJob")]) == 4
    for name in manifests.kuberay("RayJob"):
        entrypoint = manifests.load(f"kuberay/{name}")["spec"]["entrypoint"]
        assert len(list(manifests.entrypoint_commands(entrypoint))) == entrypoint.count("maskray ") > 0


@pytest.mark.parametrize("operator", ["&&", "||", ";", "|", ">"])
def test_a_shells_operator_outside_a_shell_is_refused(operator):
    with pytest.raises(ValueError, match="outside sh -c"):
        list(manifests.entrypoint_commands(f"maskray predict {operator} maskray distill"))
    inside = list(manifests.entrypoint_commands("sh -c 'maskray predict && maskray distill'"))
    assert inside == [["predict"], ["distill"]]


def test_the_image_has_what_the_launchers_heads_start_machines_with():
    pyproject = (CLUSTERS.parent / "pyproject.toml").read_text()
    clouds = re.search(r"^clouds = (.*)", pyproject, re.MULTILINE)[1]
    # What Ray's own providers import.
    assert "boto3>=" in clouds
    assert "google-api-python-client>=" in clouds
    assert re.search(r"pip install .*\[clouds\]", (CLUSTERS / "Dockerfile").read_text())
    for name in ("aws.md", "gcp.md"):
        assert "[clouds]" in (CLUSTERS / name).read_text()


@pytest.mark.parametrize("name", manifests.LAUNCHERS)
def test_a_cluster_that_stays_begins_with_a_machine_that_can_work(name):
    kinds = manifests.load(name)["available_node_types"]
    assert (kinds["cpu"]["min_workers"], kinds["gpu"]["min_workers"]) == (1, 0)
    groups = {group["groupName"]: group for group in manifests.load("kuberay/cluster.yaml")["spec"]["workerGroupSpecs"]}
    assert groups["cpu"]["replicas"] == groups["cpu"]["minReplicas"] == 1


def test_the_command_check_can_fail():
    with pytest.raises((SystemExit, ValueError)):
        cli.COMMANDS["predict"].run(["--checkpoin", "x"])
