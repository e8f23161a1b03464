"""Pages of several sessions take turns, and none waits for long."""

from __future__ import annotations

import threading
import time

import pytest
from waiting import PATIENCE

from immunelab.ui import server


def test_one_page_after_the_other_even_if_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LONGEST_WAIT", PATIENCE)  # however busy the machine is
    inside: list[int] = []
    most: list[int] = []

    def page(number: int) -> None:
        try:
            with server.in_turn():
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.01)
                inside.remove(number)
                raise RuntimeError
        except RuntimeError:
            pass

    threads = [threading.Thread(target=page, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_page_that_takes_long_holds_up_nobody_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.05)
    with server.in_turn():
        other = threading.Thread(target=lambda: server.in_turn().__enter__())
        other.start()
        other.join(PATIENCE)
        assert not other.is_alive()
    with server.in_turn():
        pass  # whoever did not wait does not give back what it never had
    assert not server._turn.locked()
