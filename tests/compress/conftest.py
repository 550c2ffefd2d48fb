"""Two methods of compression for tests of what runs them: see the folder `methods`."""

from pathlib import Path

import pytest

METHODS = Path(__file__).parent / "methods"


@pytest.fixture
def methods(monkeypatch):
    """`slim` and `learn` are in the room of methods; the folder they lie in."""
    compress = pytest.importorskip("edgegen.compress", reason="compression needs torch")
    monkeypatch.setattr(compress, "__path__", [*compress.__path__, str(METHODS)])
    return METHODS
