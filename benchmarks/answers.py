"""What was measured, a line an answer: nothing in there is measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def say(text: str) -> None:
    """Progress."""
    print(text, flush=True)  # noqa: T201


class Log:
    """A file of JSON lines in `results/`, by the settings that each answer was measured with."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        for text in path.read_text().splitlines() if path.is_file() else ():
            line = json.loads(text)
            if "answer" in line:
                self._known[json.dumps(line["key"], sort_keys=True)] = line["answer"]

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to `key`, where there is one."""
        return self._known.get(json.dumps(key, sort_keys=True))

    def add(self, key: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        """Keep an answer."""
        self.write({"key": key, "answer": answer})
        return answer

    def write(self, line: dict[str, Any]) -> None:
        """One line more."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
