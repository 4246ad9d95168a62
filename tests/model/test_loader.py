"""What a step reads is computed from the data and the seed, and agrees with brute force, however rows are packed."""

import numpy as np
import pytest
from test_shards import corpus, write

from core.errors import ConfigError, DataError
from model.data.config import PACKINGS
from model.data.loader import IGNORE, Loader, TokenData
from model.data.order import Order

T, ROWS = 32, 4
WEIGHTS = {"host1.example": 0.5, "host2.example": 1.4, "b": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TokenData:
    folder = tmp_path_factory.mktemp("loader")
    write([corpus(folder)[0]], folder / "tokens", upsample={"host3.example": 3})
    return TokenData(folder / "tokens")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> TokenData:
    """Two crawls; the second's documents are read twice an epoch, some of both half as often or 1.4 times."""
    folder = tmp_path_factory.mktemp("mixed")
    write([corpus(folder, name=name)[0] for name in "ab"], folder / "tokens", weights=WEIGHTS)
    return TokenData(folder / "tokens")


@pytest.fixture(params=PACKINGS)
def packing(request) -> str:
    return request.param


def epoch_of(loader: Loader, number: int):
    return loader.order.epoch(number)


def rows_of(loader: Loader, epoch: int):
    """The epoch's rows, each from a batch of its own."""
    before = sum(epoch_of(loader, e).rows for e in range(epoch))
    single = Loader(
        loader.data, loader.seq_len, 1, packing=loader.order.packing, mask_documents=loader.mask_documents
    )
    return [single.batch(before + row) for row in range(epoch_of(loader, epoch).rows)]


def pieces_of(data: TokenData, loader: Loader, epoch: int):
    """(row, place in it, document, place in the document) of every token that an epoch reads, one by one."""
    laid = epoch_of(loader, epoch)
    for piece in range(len(laid.document)):
        for i in range(int(laid.length[piece])):
            row, place = divmod(int(laid.start[piece]) + i, T)
            if row < laid.rows:
                yield row, place, int(laid.document[piece]), int(laid.offset[piece]) + i


def test_rows_hold_the_tokens_before_and_after_each_place(mixed, packing):
    loader = Loader(mixed, T, ROWS, packing=packing)
    for epoch in range(3):
        rows = rows_of(loader, epoch)
        expected = np.full((2, len(rows), T), IGNORE)
        expected[0] = mixed.separator
        for row, place, document, i in pieces_of(mixed, loader, epoch):
            tokens = mixed.tokens(document)
            expected[1, row, place] = tokens[i]
            expected[0, row, place] = tokens[i - 1] if i else mixed.separator
        assert (np.concatenate([r.inputs for r in rows]) == expected[0]).all()
        assert (np.concatenate([r.targets for r in rows]) == expected[1]).all()


def test_documents_of_a_row_are_numbered_where_they_change(mixed, packing):
    loader = Loader(mixed, T, ROWS, packing=packing, mask_documents=True)
    laid, rows = epoch_of(loader, 0), rows_of(loader, 0)
    owner = np.full(len(rows) * T, -1)
    for piece in range(len(laid.document)):
        owner[laid.start[piece] : laid.start[piece] + laid.length[piece]] = piece
    for row, owners in zip(rows, owner.reshape(-1, T), strict=True):
        assert row.documents[0, 0] == 0
        assert (np.diff(row.documents[0]) == (np.diff(owners) != 0)).all()
    assert max(row.documents.max() for row in rows) > 0


def test_best_fit_reads_every_token_of_every_epoch_once_a_reading(mixed):
    """Nothing is discarded or read twice; `stream` only leaves out what does not fill the last row."""
    for epoch in range(4):
        best, stream = (
            sorted(p[2:] for p in pieces_of(mixed, Loader(mixed, T, ROWS, packing=p), epoch))
            for p in ("best_fit", "stream")
        )
        order = Loader(mixed, T, ROWS).order
        entries = order._documents[order._entries(epoch)]
        assert best == sorted((d, i) for d in entries.tolist() for i in range(mixed.length[d]))
        assert 0 <= len(best) - len(stream) < T


def test_best_fit_cuts_only_what_is_longer_than_a_row(data):
    loader = Loader(data, T, ROWS, packing="best_fit")
    laid = epoch_of(loader, 0)
    assert (laid.start // T == (laid.start + laid.length - 1) // T).all()  # no piece reaches into another row
    fits = data.length[laid.document] <= T
    assert (laid.length[fits] == data.length[laid.document[fits]]).all() and 0 < fits.mean() < 1
    share = loader.order.packed()
    assert share["cut"] == np.mean(data.length[data.documents("train")] > T)
    assert share["full"] == laid.length.sum() / (laid.rows * T)
    assert share["cut"] < Loader(data, T, ROWS).order.packed()["cut"]


def test_a_document_is_read_as_often_as_its_weight_says(mixed, packing):
    order, epochs = Loader(mixed, T, ROWS, packing=packing).order, 10
    train = mixed.documents("train")
    times = np.array(
        [np.bincount(order._documents[order._entries(e)], minlength=len(mixed.weight)) for e in range(epochs)]
    )
    assert (times[:, mixed.documents("held_out")] == 0).all()
    weight = mixed.weight[train]
    assert set(weight) == {1.0, 2.0, 0.5, 1.4}
    assert (times[:, train] >= np.floor(weight)).all() and (times[:, train] <= np.ceil(weight)).all()
    assert (abs(times[:, train].sum(0) - epochs * weight) < 1).all()
    assert (times[:, train[weight == 0.5]].sum(0) == epochs / 2).all()
    halves = times[0, train[weight == 0.5]]
    assert 0 < halves.sum() < len(halves)  # not all of them in the same epochs
    assert order.tokens_an_epoch == round(weight @ mixed.length[train])


def test_each_epoch_and_seed_has_its_own_order_and_the_same_ones_the_same(data, packing):
    def reads(epoch: int, seed: int = 0) -> np.ndarray:
        return epoch_of(Loader(data, T, ROWS, seed, packing), epoch).document

    assert (reads(0) != reads(1)).any() and (reads(0) != reads(0, seed=1)).any()
    assert (reads(0) == reads(0)).all()


def test_the_order_has_no_pattern(data, packing):
    """Places before and after shuffling do not correlate; a bad hash would show here."""
    n = len(data.length)
    places = []
    for seed in range(200):
        document = epoch_of(Loader(data, T, ROWS, seed, packing), 0).document
        mean = np.bincount(document, np.linspace(0, 1, len(document)), n) / np.maximum(
            1, np.bincount(document, minlength=n)
        )
        places.append(mean[data.documents("train")])
    assert np.std(np.mean(places, axis=0)) < 3 * np.std(places) / np.sqrt(200)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_divide_the_rows_of_one(mixed, packing, processes):
    loader = Loader(mixed, T, ROWS, packing=packing, mask_documents=True)
    per = ROWS // processes
    for step in (0, 7, 31, 55):
        whole = loader.batch(step)
        parts = [loader.batch(step, slice(r * per, (r + 1) * per)) for r in range(processes)]
        for name in ("inputs", "targets", "documents"):
            assert (np.concatenate([getattr(p, name) for p in parts]) == getattr(whole, name)).all()


@pytest.mark.parametrize("corpora", ["data", "mixed"])
def test_which_steps_saw_a_page_agrees_with_brute_force(request, corpora, packing):
    data, steps = request.getfixturevalue(corpora), 160
    loader = Loader(data, T, ROWS, packing=packing)
    saw: dict[int, set[int]] = {}
    epoch = first = 0
    while first < steps * ROWS:
        for row, _, document, _ in pieces_of(data, loader, epoch):
            saw.setdefault(document, set()).add((first + row) // ROWS)
        first += epoch_of(loader, epoch).rows
        epoch += 1
    assert epoch > 1  # more than an epoch
    ids = data.records(np.arange(len(data.length)))
    for document, record_id in enumerate(ids):
        expected = sorted(step for step in saw.get(document, ()) if step < steps)
        assert loader.steps_that_saw(record_id, steps) == expected, record_id
    for step in (0, 13, 159):
        assert set(loader.records_of(step)) == {ids[d] for d, seen in saw.items() if step in seen}


def test_held_out_pages_are_seen_by_no_step(data, packing):
    loader = Loader(data, T, ROWS, packing=packing)
    held = data.records(data.documents("held_out"))
    assert held and not any(loader.steps_that_saw(record_id, 100) for record_id in held)


def test_reading_out_of_order_changes_nothing(mixed, packing):
    expected = Loader(mixed, T, ROWS, packing=packing)
    inputs = [expected.batch(step).inputs for step in range(60)]
    asked = Loader(mixed, T, ROWS, packing=packing)
    for step in (59, 0, 30, 3, 31):
        assert (asked.batch(step).inputs == inputs[step]).all()


def test_rows_are_counted_over_epochs_that_differ_in_length(packing):
    """Fractional weights: some epochs read more than others, some nothing; no row is missed or counted twice."""
    length, weight = np.array([40, 90, 60], np.int32), np.full(3, 0.3)
    order = Order("x", np.arange(3), length, weight, seq_len=T, packing=packing)
    rows = [order.epoch(epoch).rows for epoch in range(12)]
    assert 0 in rows and len(set(rows)) > 2
    expected = [(epoch, row) for epoch, n in enumerate(rows) for row in range(n)]
    assert [order.place(row) for row in range(len(expected))] == expected


def test_the_ignored_target_is_the_models(data):
    from model.network.config import IGNORE as OF_THE_MODEL

    assert IGNORE == OF_THE_MODEL


def test_wrong_settings_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="do not fill one row"):
        Loader(data, 10**6, ROWS)
    with pytest.raises(ConfigError, match="packing: tetris is none of stream, best_fit"):
        Loader(data, T, ROWS, packing="tetris")
    write([corpus(tmp_path)[0]], tmp_path / "none", weights={"c": 0})
    with pytest.raises(DataError, match="0 training tokens"):
        Loader(TokenData(tmp_path / "none"), T, ROWS)
