"""Text as it comes, token by token, up to the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Turns tokens into pieces of text that are certain: never half a character, nor the beginning of a stop string.

    The pieces, with that of `finish`, join to the text of all tokens up to the stop string that is complete first (of
    those complete at once, the longest); that string is left out. What can never become UTF-8 is given as U+FFFD.

    Args:
      decode_bytes: the bytes of some ids, as `Tokenizer.decode_bytes`.
      stop: strings that end the text, none of them empty.

    Raises:
      ValueError: for an empty stop string.

    >>> stream = TextStream(bytes, ["END"])
    >>> [stream.push(byte) for byte in b"an ENENDx"], stream.stopped
    (['a', 'n', ' ', '', '', 'EN', '', '', ''], True)
    """

    def __init__(self, decode_bytes: Callable[[list[int]], bytes], stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str) or not all(isinstance(one, str) and one for one in stop):
            raise ValueError("stop strings must be a list of strings, none of them empty")
        self.stopped = False
        self._decode_bytes = decode_bytes
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: int) -> str:
        """The text that `token` makes certain; "" once the text has stopped."""
        return "" if self.stopped else self._take(self._decoder.decode(self._decode_bytes([token])))

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        if self.stopped:
            return ""
        text = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _take(self, new: str) -> str:
        # A stop string that ends in `new` begins at the earliest in what is held back: else it would be held too.
        text = self._held + new
        ends = [(text.index(one) + len(one), text.index(one)) for one in self._stop if one in text]
        if ends:
            self.stopped, self._held = True, ""
            return text[:min(ends)[1]]
        kept = max((_overlap(text, one) for one in self._stop), default=0)
        self._held = text[len(text) - kept:]
        return text[:len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
