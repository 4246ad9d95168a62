"""What a step reads is computed from the data and the seed, and agrees with brute force."""

import numpy as np
import pytest
from test_shards import corpus, write

from model.loader import Loader, TokenData
from model.run_log import Refusal

T, ROWS = 32, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TokenData:
    folder = tmp_path_factory.mktemp("loader")
    write([corpus(folder)[0]], folder / "tokens", upsample={"host3.example": 3})
    return TokenData(folder / "tokens")


def stream(data: TokenData, loader: Loader, epoch: int) -> np.ndarray:
    """The epoch's tokens laid out whole, the slow way."""
    order, _ = loader._order(epoch)
    return np.concatenate([data.tokens(document) for document in order])


def test_an_epoch_reads_every_training_document_as_often_as_the_index_says(data):
    loader = Loader(data, T, ROWS)
    order, starts = loader._order(0)
    count = {document: int(n) for document, n in zip(*np.unique(order, return_counts=True), strict=True)}
    assert count == {document: data.repeat[document] for document in data.documents("train")}
    assert starts[-1] == loader.tokens_an_epoch
    assert 3 in count.values()


def test_rows_are_the_stream_cut_without_gap_or_overlap(data):
    loader = Loader(data, T, ROWS)
    for epoch in range(2):
        rows = [loader.row(epoch * loader.rows_an_epoch + r) for r in range(loader.rows_an_epoch)]
        assert all(len(row) == T + 1 for row in rows)
        wanted = stream(data, loader, epoch)[: loader.rows_an_epoch * T + 1]
        assert (np.concatenate([row[:-1] for row in rows]) == wanted[:-1]).all()
        assert (np.concatenate([row[1:] for row in rows]) == wanted[1:]).all()


def test_epochs_and_seeds_shuffle_anew_and_the_same_ones_alike(data):
    first, second = Loader(data, T, ROWS)._order(0)[0], Loader(data, T, ROWS)._order(1)[0]
    assert (first != second).any() and (first != Loader(data, T, ROWS, seed=1)._order(0)[0]).any()
    assert (first == Loader(data, T, ROWS)._order(0)[0]).all()


def test_the_order_has_no_pattern(data):
    """Places before and after shuffling do not correlate; a bad hash would show here."""
    orders = [Loader(data, T, ROWS, seed=s)._order(0)[0] for s in range(200)]
    means = np.mean(orders, axis=0)
    assert np.std(means) < 3 * np.std(orders[0]) / np.sqrt(200)


def test_two_processes_share_out_the_rows_of_one(data):
    loader = Loader(data, T, ROWS)
    for step in (0, 7, 31):
        whole = loader.batch(step)[0]
        halves = [loader.batch(step, share)[0] for share in (slice(0, 2), slice(2, 4))]
        assert (np.concatenate(halves) == whole).all()


def test_which_steps_saw_a_page_agrees_with_brute_force(data):
    loader, steps = Loader(data, T, ROWS), 80
    assert steps * ROWS > 2 * loader.rows_an_epoch  # more than two epochs
    saw: dict[str, set[int]] = {}
    for step in range(steps):
        for number in range(step * ROWS, (step + 1) * ROWS):
            epoch, place = divmod(number, loader.rows_an_epoch)
            order, _ = loader._order(epoch)
            owner = np.repeat(order, data.length[order])[place * T : (place + 1) * T + 1]
            for document in set(owner.tolist()):
                saw.setdefault(data.record_ids[document].as_py(), set()).add(step)
    for record_id in data.record_ids.to_pylist():
        assert loader.steps_that_saw(record_id, steps) == sorted(saw.get(record_id, set())), record_id
    for step in (0, 13, 79):
        assert set(loader.records_of(step)) == {r for r, seen in saw.items() if step in seen}


def test_held_out_pages_are_seen_by_no_step(data):
    loader = Loader(data, T, ROWS)
    held = [data.record_ids[i].as_py() for i in data.documents("held_out")]
    assert held and not any(loader.steps_that_saw(record_id, 100) for record_id in held)


def test_too_little_text_is_said(data):
    with pytest.raises(Refusal, match="do not fill one row"):
        Loader(data, 10**6, ROWS)
