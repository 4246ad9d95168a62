"""Batches made in the background are those that make_batch returns, and no thread stays behind."""

import threading

import pytest

from model.data.prefetch import Prefetch


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_every_step_gets_its_own_batch_in_any_order_of_requests():
    with Prefetch(lambda step: step * step, steps=50) as batches:
        requested = [*range(10), 40, 41, 3, 4, 4, 0, 49, 7]
        assert [batches(step) for step in requested] == [step * step for step in requested]
    assert not running()


def test_the_next_steps_are_made_in_advance_but_none_past_the_last():
    made, four = [], threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if len(made) == 4:
            four.set()
        return step

    with Prefetch(make, steps=7, ahead=3) as batches:
        batches(0)
        assert four.wait(10) and made == [0, 1, 2, 3]
        assert [batches(step) for step in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    assert made == list(range(7))


def test_batches_are_made_in_a_thread_of_their_own_and_waiting_is_counted():
    go = threading.Event()

    def make(step: int) -> str:
        go.wait(10)
        return threading.current_thread().name

    with Prefetch(make, steps=3) as batches:
        threading.Timer(0.05, go.set).start()
        assert batches(0).startswith("prefetch")
        first = batches.waited
        assert first >= 0.04
        assert batches(1).startswith("prefetch") and batches.waited >= first


def test_an_error_is_raised_at_its_step_and_the_step_can_be_tried_again():
    def make(step: int) -> int:
        if step == 2 and fails:
            raise OSError("the disk is gone")
        return step

    fails = [True]
    with Prefetch(make, steps=5) as batches:
        assert [batches(0), batches(1)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            batches(2)
        fails.clear()
        assert [batches(2), batches(3)] == [2, 3]
    assert not running()


def test_no_thread_stays_behind_when_training_fails():
    with pytest.raises(KeyError), Prefetch(lambda step: step, steps=1000) as batches:
        batches(0)
        raise KeyError
    assert not running()


def test_a_loaders_batches_are_the_same_with_and_without(tmp_path):
    from test_shards import corpus, write

    from model.data.loader import Loader, TokenData

    write([corpus(tmp_path)[0]], tmp_path / "t", weights={"c": 1.5})
    plain, ahead = (Loader(TokenData(tmp_path / "t"), 32, 4, packing="best_fit") for _ in range(2))
    with Prefetch(ahead.batch, steps=60) as batches:
        for step in (*range(50), 10, 11):
            assert (batches(step).inputs == plain.batch(step).inputs).all()
            assert ahead.records_of(step) == plain.records_of(step)  # requested beside the thread
