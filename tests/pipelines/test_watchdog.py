"""Which worker hangs: told from what each last said and when."""

import pytest

from pipelines.watchdog import Beat, Watchdog


def beat(rank, step=5, phase="compute"):
    return Beat(rank, step, phase, 100 + rank, "node", f"10.0.0.{rank}")


def after_a_step(*beats, timeout_s=10.0, first_s=0.0):
    """A watchdog that has seen each worker do a step, and then this beat."""
    dog = Watchdog(timeout_s, first_s)
    for given in beats:
        dog.hear(given._replace(step=given.step - 1), 0.0)
        dog.hear(given, 0.0)
    return dog


def heard(*beats, at=0.0, timeout_s=10.0):
    dog = Watchdog(timeout_s)
    for given in beats:
        dog.hear(given, at)
    return dog


def test_nobody_hangs_while_all_go_on():
    dog = heard(beat(0), beat(1))
    for second in range(1, 100):
        dog.hear(beat(0, second), second)
        dog.hear(beat(1, second), second)
        assert dog.hung(second + 0.5) == []


def test_before_the_first_beat_nobody_hangs():
    assert Watchdog(1.0).hung(1e6) == []


def test_who_falls_silent_is_named_and_who_waits_for_it_is_not():
    """A stopped process: the others beat on, all in the same step."""
    dog = heard(beat(0), beat(1), beat(2))
    for second in range(1, 13):
        for rank in (0, 2):
            dog.hear(beat(rank), second)
        found = dog.hung(second)
        assert [hung.beat.rank for hung in found] == ([1] if second > 10 else [])
    assert found[0].reason == "worker 1 (process 101 on 10.0.0.1) was silent for 12 s at step 5, in its compute phase"


@pytest.mark.parametrize("phase", ["data", "checkpoint", "report", "start"])
def test_who_waits_for_something_else_is_named(phase):
    dog = heard(beat(0), beat(1, phase=phase), beat(2))
    for second in range(1, 13):
        for given in (beat(0), beat(1, phase=phase), beat(2)):
            dog.hear(given, second)
    found = dog.hung(12.5)
    assert [hung.beat.rank for hung in found] == [1]
    assert found[0].reason.endswith(f"did not go on for 12 s at step 5, in its {phase} phase")


def test_where_all_wait_for_each_other_all_are_named():
    dog = heard(beat(0), beat(1))
    for second in range(1, 13):
        for rank in (0, 1):
            dog.hear(beat(rank), second)
    assert [hung.beat.rank for hung in dog.hung(12)] == [0, 1]


def test_one_that_goes_on_is_enough():
    dog = heard(beat(0), beat(1))
    for second in range(1, 40):
        dog.hear(beat(0, second), second)
        dog.hear(beat(1), second)
        assert dog.hung(second) == []


def test_those_that_are_behind_are_named_before_those_that_wait_for_them():
    ahead, behind = beat(0, 6, "data"), beat(1, 5, "compute")
    dog = after_a_step(ahead, behind)
    for second in range(1, 13):
        for given in (ahead, behind):
            dog.hear(given, second)
    assert [hung.beat.rank for hung in dog.hung(12)] == [1]


def test_who_has_finished_is_never_named():
    """It is silent from then on, also to what it said before and arrives later."""
    dog = after_a_step(beat(0, 6, "checkpoint"), beat(1))
    dog.hear(beat(1, phase="done"), 1)
    dog.hear(beat(1, phase="checkpoint"), 1)
    for second in range(1, 30):
        dog.hear(beat(0, 6, "checkpoint"), second)
    assert [hung.beat.rank for hung in dog.hung(29)] == [0]
    dog.hear(beat(0, 6, "done"), 30)
    assert dog.hung(1e6) == []


def test_the_first_step_has_a_time_of_its_own():
    dog = Watchdog(10.0, 100.0)
    for second in range(102):
        for rank in (0, 1):
            dog.hear(beat(rank, 1), second)
        assert dog.hung(second) == [] or second > 100
    assert [hung.beat.rank for hung in dog.hung(101)] == [0, 1]
    dog = after_a_step(beat(0), beat(1), first_s=100.0)
    for second in range(1, 13):
        for rank in (0, 1):
            dog.hear(beat(rank), second)
    assert [hung.beat.rank for hung in dog.hung(12)] == [0, 1]
