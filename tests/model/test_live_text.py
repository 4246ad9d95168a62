"""Text streamed token by token against the finished text."""

import random

from model.generation.live_text import LiveText


def test_pieces_join_to_the_text_and_none_is_revised():
    dice = random.Random(0)
    for _ in range(400):
        data = "".join(dice.choice("abé€\U0001f600") for _ in range(40)).encode()
        if dice.random() < 0.3:
            data = dice.randbytes(30) + data[: dice.randrange(len(data))]  # not UTF-8
        stops = ["".join(dice.choice("abé€") for _ in range(dice.randrange(2, 5))) for _ in range(3)]
        places = [p for stop in stops if (p := data.find(stop.encode())) >= 0]
        live, pieces, start, stopped = LiveText(stops), [], 0, False
        while start < len(data) and not stopped:
            n = dice.randrange(1, 4)
            stopped = live.add(data[start : start + n])
            start += n
            pieces.append(live.piece())
        pieces.append(live.rest())
        assert stopped == bool(places)
        if stopped:  # the first match to be complete; one that begins earlier may not have been
            assert data.startswith(bytes(live.data))
            assert any(data[len(live.data) :].startswith(stop.encode()) for stop in stops)
        else:
            assert bytes(live.data) == data
        assert "".join(pieces) == live.text()


def test_only_a_possible_beginning_of_a_stop_string_is_held_back():
    live, shown = LiveText(["\n\nUser:", "END"]), []
    for token in ("one", " \n", "\nU", "se", " E", "N", "d", " EN", "D more"):
        stopped = live.add(token.encode())
        shown.append(live.piece())
    assert stopped
    assert shown == ["one", " ", "", "", "\n\nUse ", "", "ENd", " ", ""]
    assert live.text() == "one \n\nUse ENd "


def test_an_incomplete_character_is_held_back():
    live = LiveText()
    pieces = []
    for byte in "a€".encode():
        live.add(bytes([byte]))
        pieces.append(live.piece())
    assert pieces == ["a", "", "", "€"]
    live.add("€".encode()[:2])
    assert (live.piece(), live.rest()) == ("", "\N{REPLACEMENT CHARACTER}")
