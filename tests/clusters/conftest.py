import pytest

from pipelines import job_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this checkout, without CUDA."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKRAY_CUDA", "0")
        return job_wheel.build(tmp_path_factory.mktemp("wheels"))
