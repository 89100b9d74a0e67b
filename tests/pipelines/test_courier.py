"""Messages passed on by a thread: in order, never in the way, and given up where nobody takes them."""

import itertools
import threading
import time

from pipelines.courier import Courier


def fails():
    raise ConnectionError("refused")


def test_all_is_done_in_order_and_answers_come_back():
    courier, done = Courier(), []
    for number in range(20):
        courier.tell("note", lambda number=number: done.append(number))
    assert courier.ask("read", lambda: list(done), 10) == list(range(20))
    assert courier.ask("read", fails, 10) is None
    courier.close(10)
    courier.tell("note", lambda: done.append(20))  # a closed one opens again
    courier.close(10)
    assert done == list(range(21))


def test_the_oldest_are_dropped_where_too_many_wait(caplog):
    courier, done, gate = Courier(most_waiting=5), [], threading.Event()
    courier.tell("wait", lambda: gate.wait(10))
    while courier._waiting:
        time.sleep(0.01)
    for number in range(12):
        courier.tell("note", lambda number=number: done.append(number))
    gate.set()
    courier.close(10)
    assert done == [7, 8, 9, 10, 11]
    assert "tracking: 7 messages to the server are lost" in caplog.text


def test_a_peer_that_is_gone_is_left_alone_for_a_while():
    courier, tried = Courier(pause_s=0.5), []

    def try_and_fail():
        tried.append(time.monotonic())
        fails()

    for _ in range(8):
        courier.tell("note", try_and_fail)
    deadline = time.monotonic() + 10
    while len(tried) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    gaps = [after - before for before, after in itertools.pairwise(tried)]
    assert max(gaps[:2]) < 0.3
    assert min(gaps[2:4]) > 0.45
    courier.close(0.0)


def test_who_waits_for_a_peer_that_is_gone_is_told_soon():
    courier, tried = Courier(), []

    def slow():
        tried.append(1)
        time.sleep(0.2)
        fails()

    for _ in range(100):
        courier.tell("note", slow)
    started = time.monotonic()
    assert courier.ask("read", lambda: 1, 60) is None
    assert time.monotonic() - started < 5
    assert len(tried) == 3


def test_the_end_waits_for_what_is_under_way_and_not_for_ever(caplog):
    courier, gate = Courier(), threading.Event()
    courier.tell("wait", lambda: gate.wait(10))
    courier.tell("note", lambda: None)
    started = time.monotonic()
    courier.close(0.3)
    assert 0.2 < time.monotonic() - started < 5
    assert "tracking: 2 messages to the server are lost" in caplog.text
    gate.set()
