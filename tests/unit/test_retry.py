from __future__ import annotations

import asyncio

import pytest

from raymlops.serving import retry
from raymlops.serving.retry import RETRIES, retried


class Died(Exception):
    pass


class Failed(Exception):
    pass


def ask_of(*answers: object):
    """Gives one answer after the other; raises those that are errors; counts."""
    left, asked = list(answers), []

    async def ask() -> object:
        asked.append(1)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask, asked


def is_death(error: Exception) -> bool:
    return isinstance(error, Died)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE_S", 0.0)


def test_a_death_is_asked_again_and_the_answer_comes() -> None:
    ask, asked = ask_of(Died(), Died(), "answer")
    assert asyncio.run(retried(ask, is_death, 5.0)) == "answer"
    assert len(asked) == 3


def test_at_most_two_times() -> None:
    ask, asked = ask_of(*[Died() for _ in range(9)])
    with pytest.raises(Died):
        asyncio.run(retried(ask, is_death, 5.0))
    assert len(asked) == 1 + RETRIES


def test_a_version_that_fails_is_not_asked_again() -> None:
    ask, asked = ask_of(Failed(), "answer")
    with pytest.raises(Failed):
        asyncio.run(retried(ask, is_death, 5.0))
    assert len(asked) == 1


def test_nothing_is_asked_again_behind_the_deadline() -> None:
    times = iter([0.0, 0.0, 3.0])
    ask, asked = ask_of(Died(), "answer")
    with pytest.raises(Died):
        asyncio.run(retried(ask, is_death, 3.0, lambda: next(times)))
    assert len(asked) == 1


def test_all_attempts_together_stay_within_the_deadline() -> None:
    async def never() -> None:
        await asyncio.sleep(60)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(retried(never, is_death, 0.01))
