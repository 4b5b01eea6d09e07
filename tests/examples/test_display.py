import io

import pytest

from examples.display import Display, bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_for_every_new_mark() -> None:
    stream = io.StringIO()
    display = Display(stream)
    for percent in (0, 1, 4, 5, 9, 10):
        display.update(f"{percent} %", mark=percent // 5)
    display.print("done")
    assert stream.getvalue() == "0 %\n5 %\n10 %\ndone\n"


def test_a_terminal_gets_one_line_that_is_rewritten() -> None:
    stream = Terminal()
    display = Display(stream)
    display.update("1 %", mark=0)
    display.update("2 %", mark=0)
    display.print("done")
    assert stream.getvalue() == "\r\x1b[K1 %\r\x1b[K2 %\r\x1b[Kdone\n"


@pytest.mark.parametrize(("percent", "filled"), [(0, 0), (50, 15), (99, 29), (100, 30)])
def test_the_bar_is_full_only_at_the_end(percent: int, filled: int) -> None:
    assert bar(percent) == f"[{'#' * filled}{'.' * (30 - filled)}] {percent:3d} %"
