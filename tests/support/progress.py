"""A line for each file of tests when it begins, so that a run shows what is going on; failures are named at once."""

from __future__ import annotations

import pytest
from workers import SPREAD

__all__ = ["Progress"]


class Progress:
    """A pytest plugin of the process that reports; with workers, that is the one that started them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._total = self._done = 0
        self._files: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        self._total = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        file, _, test = nodeid.partition("::")
        name = file if "[" not in test or not file.endswith(SPREAD) else test.partition("[")[2].partition("]")[0]
        if name not in self._files:
            self._files.add(name)
            self._write(f"[{100 * self._done // max(1, self._total):3}%] {name}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._done += 1
        if report.failed:
            self._write(f"       FAILED {report.nodeid}", red=True)

    def _write(self, line: str, **markup: bool) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(line, **markup)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Leave out the letter of each test."""
        if report.when == "call" and report.passed:
            return "passed", "", "PASSED"
        if report.skipped and not hasattr(report, "wasxfail"):
            return "skipped", "", "SKIPPED"
        if report.failed:
            return ("failed", "", "FAILED") if report.when == "call" else ("error", "", "ERROR")
        return None
