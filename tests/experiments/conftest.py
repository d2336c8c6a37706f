"""What tests of several commands share."""

import pytest

from experiments import report


@pytest.fixture
def draw_no_more(monkeypatch):
    """Called before a command is run a second time: what its report draws was looked at after the first."""
    return lambda: monkeypatch.setattr(report, "picture", lambda *_, **__: "")
