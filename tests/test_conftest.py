"""In CI a skipped test fails, unless it lacks hardware or privileges."""

import pytest

pytest_plugins = ["pytester"]

CONFTEST = "from tests.conftest import pytest_runtest_makereport"
TESTS = """
import pytest

@pytest.fixture(scope="session")
def server():
    pytest.skip("a program is missing")

def test_program(server): ...

@pytest.mark.gpu
def test_gpu():
    pytest.skip("no GPU")

@pytest.mark.xfail
def test_known_bug():
    assert False
"""


@pytest.mark.parametrize(
    ("ci", "expected"),
    [
        ("true", {"errors": 1, "skipped": 1, "xfailed": 1}),
        ("", {"skipped": 2, "xfailed": 1}),
    ],
)
def test_only_tests_that_lack_hardware_are_skipped_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, expected: dict[str, int]
) -> None:
    monkeypatch.setenv("CI", ci)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest("-p", "no:cacheprovider", "-W", "ignore")
    found = result.parseoutcomes()
    found.pop("warnings", None)
    assert found == expected
