"""The demo from start to end, smaller than its default, and again on what it left."""

import json

import pytest

from pipelines.cli import main
from pipelines.dataset import Dataset

pytestmark = pytest.mark.ray

SMALL = ["--train", "96", "--val", "16", "--unlabelled", "32", "--steps", "150", "--student-steps", "40"]


def test_demo_leaves_its_report_and_goes_on_where_it_was(tmp_path, capsys):
    out = tmp_path / "demo"
    main(["demo", "--out", str(out), *SMALL])
    first = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    for who in ("teacher", "student"):
        for kind in ("box", "mask"):
            assert 0 <= summary[who][kind]["AP"] <= summary[who][kind]["AP50"] <= 1
    # Hardly trained, but far from chance: the parts fit together.
    assert summary["teacher"]["mask"]["AP50"] > 0.2
    assert set(summary["seconds"]) >= {"prepare", "train teacher", "distill", "train student"}
    assert min(summary["seconds"].values()) >= 0
    assert len(Dataset(str(out / "data" / "pseudo"))) > 0
    page = (out / "report.html").read_text()
    assert "teacher" in page
    assert "student" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    main(["demo", "--out", str(out), *SMALL])
    again = capsys.readouterr().out
    assert again.splitlines()[-6:] == first.splitlines()[-6:]
    assert json.loads((out / "summary.json").read_text()) == summary
