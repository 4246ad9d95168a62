"""The text of one row while it is generated: where a stop string ends it, and which part is final already."""

import codecs
from collections.abc import Sequence


class LiveText:
    """Takes the bytes of each token; gives text that later tokens cannot change.

    Stop strings are searched for in bytes, so that they may begin and end within tokens and characters may span
    several; UTF-8 is self-synchronising, so a match of bytes is a match of characters. Only the tail is searched.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = [stop.encode() for stop in stops]
        # Bytes before a token that a match may begin in.
        self.reach = max(map(len, self.stops), default=1) - 1
        self.data = bytearray()
        self.begin = 0  # a match may begin from here on: the text of a tool is not searched
        self.shown = 0  # bytes given as pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: bytes, sampled: bool = True) -> bool:
        """Append a token -> whether it completed a stop string, which is then removed with all after it."""
        start = max(self.begin, len(self.data) - self.reach)
        self.data += token
        if not sampled:
            self.begin = len(self.data)
            return False
        matches = [match for stop in self.stops if (match := self.data.find(stop, start)) >= 0]
        if matches:
            del self.data[min(matches) :]
        return bool(matches)

    def piece(self) -> str:
        """The text that has become final since the last piece: whole characters that begin no stop string."""
        return self._show(len(self.data) - self._held_back())

    def rest(self) -> str:
        """The rest of the text, when no token follows; an incomplete character becomes U+FFFD."""
        return self._show(len(self.data)) + self._decoder.decode(b"", final=True)

    def text(self) -> str:
        """The whole text so far."""
        return self.data.decode("utf-8", "replace")

    def _show(self, end: int) -> str:
        start, self.shown = self.shown, max(self.shown, end)
        return self._decoder.decode(bytes(self.data[start : self.shown]))

    def _held_back(self) -> int:
        """Length in bytes of the longest suffix of the text that is a prefix of a stop string."""
        longest = min(self.reach, len(self.data) - self.begin)
        tail = bytes(self.data[len(self.data) - longest :])
        ends = (tail[i:] for i in range(longest))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self.stops)), 0)
