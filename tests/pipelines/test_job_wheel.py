"""The wheel of a job, from a wheel made by hand."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from pipelines import job_wheel

NAME = "maskray-0.1.0-cp310-abi3-linux_x86_64.whl"
METADATA = "Metadata-Version: 2.4\nName: maskray\nVersion: 0.1.0\nProvides-Extra: test\nRequires-Dist: torch>=2.11\n"


def write_wheel(folder, name=NAME, code="answer = 1\n", **files):
    folder.mkdir(exist_ok=True)
    content = {
        "model/__init__.py": "",
        "pipelines/__init__.py": code,
        "_maskray_ops.abi3.so": "binary",
        "maskray-0.1.0.dist-info/METADATA": f"{METADATA}\nRequires-Dist: is a word of this text\n",
        "maskray-0.1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
        "maskray-0.1.0.dist-info/RECORD": "",
        **files,
    }
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, text in content.items():
            if text is not None:
                archive.writestr(path, text)
    return folder / name


def test_the_copy_has_no_requirements_and_a_name_of_its_content(tmp_path):
    made = job_wheel.for_job(write_wheel(tmp_path / "a"), tmp_path)
    version = made.name.split("-")[1]
    assert made.name == f"maskray-{version}-cp310-abi3-linux_x86_64.whl"
    assert version.startswith("0.1.0+h")
    text = zipfile.ZipFile(made).read(f"maskray-{version}.dist-info/METADATA").decode()
    head, _, body = text.partition("\n\n")
    assert f"Version: {version}" in head.splitlines()
    assert "Requires-Dist" not in head
    assert "Provides-Extra" not in head
    assert body == "Requires-Dist: is a word of this text\n"


def test_equal_content_has_an_equal_name_and_equal_bytes_and_other_content_another(tmp_path):
    first = job_wheel.for_job(write_wheel(tmp_path / "a"), tmp_path / "a")
    again = job_wheel.for_job(write_wheel(tmp_path / "b"), tmp_path / "b")
    other = job_wheel.for_job(write_wheel(tmp_path / "c", code="answer = 2\n"), tmp_path / "c")
    assert first.name == again.name != other.name
    assert first.read_bytes() == again.read_bytes()


def test_pip_installs_the_copy_without_asking_any_index(tmp_path):
    # Named for any platform, so that pip takes it here.
    source = write_wheel(tmp_path / "a", "maskray-0.1.0-py3-none-any.whl")
    made = job_wheel.for_job(source, tmp_path)
    install = [sys.executable, "-m", "pip", "install", "--no-index", "--target", str(tmp_path / "there")]
    assert subprocess.run([*install, str(source)], capture_output=True, check=False).returncode != 0
    shutil.rmtree(tmp_path / "there", ignore_errors=True)
    subprocess.run([*install, str(made)], capture_output=True, check=True)
    assert (tmp_path / "there" / "pipelines" / "__init__.py").read_text() == "answer = 1\n"


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("other-0.1.0-py3-none-any.whl", {}, "is not a wheel of maskray"),
        (NAME, {"_maskray_ops.abi3.so": None}, "lacks the compiled operators"),
    ],
)
def test_other_wheels_are_refused(tmp_path, name, files, message):
    with pytest.raises(job_wheel.WheelError, match=message):
        job_wheel.for_job(write_wheel(tmp_path / "a", name, **files), tmp_path)


def test_the_operators_of_the_image_are_not_hidden(tmp_path):
    # Of any system: what is left runs anywhere.
    wheel = write_wheel(tmp_path / "a", NAME.replace("linux_x86_64", "macosx_11_0_arm64"))
    with pytest.raises(
        job_wheel.WheelError, match=r"built for another system than the nodes' Linux: .*--operators image"
    ):
        job_wheel.for_job(wheel, tmp_path)
    made = job_wheel.for_job(wheel, tmp_path, job_wheel.Operators.IMAGE)
    assert made.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(made).namelist()
    assert "pipelines/__init__.py" in names
    assert not [name for name in names if name.startswith("_maskray_ops")]
    linux = job_wheel.for_job(write_wheel(tmp_path / "b"), tmp_path, job_wheel.Operators.IMAGE)
    assert linux.name == made.name


def test_missing_and_damaged_wheels_are_refused(tmp_path):
    with pytest.raises(job_wheel.WheelError, match="is not a wheel of maskray"):
        job_wheel.for_job(tmp_path / NAME, tmp_path)
    (tmp_path / NAME).write_bytes(b"no zip")
    with pytest.raises(job_wheel.WheelError, match="is damaged"):
        job_wheel.for_job(tmp_path / NAME, tmp_path)


def test_an_installation_without_sources_asks_for_a_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(job_wheel, "__file__", str(tmp_path / "pipelines" / "job_wheel.py"))
    with pytest.raises(job_wheel.WheelError, match="give --wheel FILE"):
        job_wheel.build(tmp_path)


def test_a_failed_build_is_one_line(tmp_path, monkeypatch):
    for name in job_wheel._SOURCES:
        (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    monkeypatch.setattr(job_wheel, "__file__", str(tmp_path / "pipelines" / "job_wheel.py"))
    with pytest.raises(job_wheel.WheelError, match=r"^cannot build the wheel: .*give --wheel$"):
        job_wheel.build(tmp_path / "cache")
