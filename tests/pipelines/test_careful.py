"""Pictures that kill their decoder cost their own row and nothing else."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import shard_task
from pipelines.careful import CarefulJudge
from pipelines.rejections import Reason, Rejection
from tests.pipelines import deadly_judges, test_shard_task, tiny_coco
from tests.pipelines.test_check import DATA, RULES, row

ROOT = str(Path(__file__).parents[2])


def test_it_judges_as_the_plain_one():
    with CarefulJudge() as judge:
        kept = judge(row([tiny_coco.annotation(1, 5)]), DATA, RULES, None, None)
        assert kept.record.image == DATA
        assert judge(row(), b"", RULES, None, None).reason is Reason.EMPTY_PICTURE
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("deadly", "match"), [(deadly_judges.crashes, "crashed"), (deadly_judges.hangs, "did not return in 1 s")]
)
def test_the_deadly_picture_is_rejected_and_the_next_is_not(deadly, match):
    with CarefulJudge(deadly, longest_s=1) as judge:
        assert judge(row(), DATA, RULES, None, None).record.image == DATA
        lost = judge(row([{}, {}], file_name="2.jpg"), DATA, RULES, None, None)
        assert isinstance(lost, Rejection)
        assert (lost.reason, lost.instances, lost.is_row) == (Reason.CORRUPT_PICTURE, 2, True)
        assert match in lost.value
        assert judge(row(), DATA, RULES, None, None).record.image == DATA


MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from pipelines import shard_task
from tests.pipelines import deadly_judges
from tests.pipelines.test_shard_task import RULES
task = shard_task.ShardTask(sys.argv[2], sys.argv[3], "f", RULES)
if __name__ == "__main__":
    made = shard_task.make_shard(task, 0, judge=deadly_judges.crashes)
    print(made.info.rows, [r.file_name for r in made.rejections])
"""


def test_a_shard_that_killed_its_process_is_made_at_the_second_attempt(tmp_path):
    task = test_shard_task.planned(tmp_path)
    script = tmp_path / "make.py"
    script.write_text(MAKE)
    arguments = [sys.executable, str(script), ROOT, task.out, task.images]
    note = tmp_path / "out" / shard_task.attempt_name(0)
    first = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert first.returncode < 0
    assert note.exists()
    second = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert second.stdout.strip() == "3 ['2.jpg']", second.stderr
    assert not note.exists()
    found = shard_task.make_shard(task, 0)
    assert (found.was_there, [r.reason for r in found.rejections]) == (True, [Reason.CORRUPT_PICTURE])
