"""Messages over a stream: each is given on once, whatever becomes of it."""

from __future__ import annotations

import pytest

from raymlops.serving.frames import Frames, framed


def test_messages_arrive_in_order_however_the_stream_is_cut() -> None:
    got: list[int] = []
    frames = Frames(got.append, lambda: None)
    stream = b"".join(framed(number) for number in range(5))
    for at in range(0, len(stream), 3):
        frames.data_received(stream[at : at + 3])
    assert got == list(range(5))


def test_a_message_that_cannot_be_dealt_with_is_not_given_on_twice() -> None:
    got: list[int] = []

    def take(number: int) -> None:
        got.append(number)
        if number == 2:
            raise ValueError("not two")

    frames = Frames(take, lambda: None)
    with pytest.raises(ValueError, match="not two"):
        frames.data_received(b"".join(framed(number) for number in (1, 2, 3)))
    frames.data_received(framed(4))
    assert got == [1, 2, 3, 4]


def test_a_message_that_cannot_be_read_is_left_out() -> None:
    got: list[int] = []
    frames = Frames(got.append, lambda: None)
    broken = framed(2)
    with pytest.raises(Exception, match=r"pickle|opcode|load key"):
        frames.data_received(framed(1) + broken[:4] + b"\xff" * (len(broken) - 4) + framed(3))
    frames.data_received(framed(4))
    assert got == [1, 3, 4]
