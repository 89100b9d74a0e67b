from pipelines.inbox import Failure, Inbox
from pipelines.watchdog import Beat


def test_everything_is_given_once_and_in_order():
    inbox, beat = Inbox(), Beat(0, 1, "data", 7, "n", "h")
    inbox.put({"step": 1.0})
    inbox.put({"step": 2.0})
    inbox.committed(2)
    inbox.failed(Failure(1, "gone", False))
    assert inbox.beat(beat) is False
    mail = inbox.drain(0)
    assert mail.rows == [{"step": 1.0}, {"step": 2.0}]
    assert (mail.committed, mail.beats, mail.failures) == ([2], [beat], [Failure(1, "gone", False)])
    assert inbox.drain(1) == ([], [], [], [], 2)


def test_the_wish_to_stop_is_the_answer_to_a_beat():
    inbox, beat = Inbox(), Beat(0, 1, "data", 7, "n", "h")
    inbox.stop()
    assert inbox.beat(beat) is True


def test_what_never_arrived_is_given_again():
    """An answer that came too late is lost to the driver: it says so by the number it has."""
    inbox = Inbox()
    inbox.put({"step": 1.0})
    assert inbox.drain(0).rows == [{"step": 1.0}]
    inbox.put({"step": 2.0})
    inbox.committed(2)
    assert inbox.drain(0).rows == [{"step": 1.0}, {"step": 2.0}]
    again = inbox.drain(0)
    assert (again.rows, again.committed) == ([{"step": 1.0}, {"step": 2.0}], [2])
    inbox.put({"step": 3.0})
    assert inbox.drain(again.number).rows == [{"step": 3.0}]
