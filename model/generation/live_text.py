"""The text of one row while it grows: where a stop string ends it, and which part of it can be shown already."""

import codecs
from collections.abc import Sequence


class LiveText:
    """Bytes come in token by token; text goes out that nothing can change any more.

    Stop strings are looked for in bytes, so that they may begin and end within tokens and characters may span
    several; UTF-8 synchronises itself, so a match of bytes is a match of characters. Only the tail is looked at.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = [stop.encode() for stop in stops]
        # Bytes before a token that a match may begin in.
        self.reach = max(map(len, self.stops), default=1) - 1
        self.data = bytearray()
        self.begin = 0  # a match may begin here: what a tool has written stops nothing
        self.shown = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: bytes, sampled: bool = True) -> bool:
        """Append a token; whether it completed a stop string, which is then cut off with all behind it."""
        start = max(self.begin, len(self.data) - self.reach)
        self.data += token
        if not sampled:
            self.begin = len(self.data)
            return False
        places = [place for stop in self.stops if (place := self.data.find(stop, start)) >= 0]
        if places:
            del self.data[min(places) :]
        return bool(places)

    def piece(self) -> str:
        """What has become certain since the last piece: whole characters that begin no stop string."""
        return self._show(len(self.data) - self._held())

    def rest(self) -> str:
        """All that is left, when nothing more will come; a cut character becomes U+FFFD."""
        return self._show(len(self.data)) + self._decoder.decode(b"", final=True)

    def text(self) -> str:
        return self.data.decode("utf-8", "replace")

    def _show(self, end: int) -> str:
        start, self.shown = self.shown, max(self.shown, end)
        return self._decoder.decode(bytes(self.data[start : self.shown]))

    def _held(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = min(self.reach, len(self.data) - self.begin)
        tail = bytes(self.data[len(self.data) - longest :])
        ends = (tail[i:] for i in range(longest))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self.stops)), 0)
