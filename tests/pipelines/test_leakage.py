"""The same picture bytes in two data sets are found, by hash alone."""

from pipelines import commit, leakage
from pipelines.leakage import Leak
from tests.pipelines.tiny_shards import record, write_dataset


def pictures(*numbers):
    return [record(n, sha256=commit.sha256_of(b"%d" % (n % 100))) for n in numbers]


def test_the_same_bytes_under_other_ids_are_found(tmp_path):
    first = write_dataset(tmp_path / "a", [pictures(1, 2), [], pictures(3, 4)])
    second = write_dataset(tmp_path / "b", [pictures(103, 5), pictures(102)])
    third = write_dataset(tmp_path / "c", [pictures(9)])
    assert leakage.leak_between(first, [second, third]) == Leak(2, ("2.jpg", "3.jpg"))
    assert leakage.leak_between(third, [first, second]) == Leak()
    assert leakage.leak_between(first, []) == Leak()
    assert len(leakage.hashes_of([first, second, third])) == 6


def test_of_many_a_few_are_shown(tmp_path):
    first = write_dataset(tmp_path / "a", [pictures(*range(1, 9))])
    leak = leakage.leak_between(first, [first])
    assert (leak.count, len(leak.examples)) == (8, 5)
    assert str(Leak(2, ("a.jpg", "b.jpg"))) == "2 pictures (such as a.jpg, b.jpg)"
