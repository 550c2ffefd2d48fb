"""The low-rank adapters in a bundle, which a deployment switches: `adapters/NAME.npz`.

A file holds what each graph is fed beside its inputs, as `GRAPH/INPUT`, in the order the graph
has it. `base` holds zeros: the model as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgegen.bundle import BASE, Bundle, check_files
from edgegen.errors import FormatError, NotFoundError, UnsupportedError
from edgegen.rooms import nearest
from edgegen.spec import Array, Feed, Session

FOLDER = "adapters"


def write(feeds: Mapping[str, Feed], path: Path) -> None:
    """Store what one adapter feeds each graph."""
    path.parent.mkdir(exist_ok=True)
    flat = {f"{graph}/{n}": array for graph, feed in feeds.items() for n, array in feed.items()}
    with path.open("wb") as file:
        np.savez(file, **flat)  # type: ignore[arg-type]


def read(bundle: Bundle, name: str | None) -> dict[str, dict[str, Array]]:
    """What the adapter called `name` feeds each graph; None is the model without one.

    Raises:
        NotFoundError: the bundle has no adapter of that name.
        FormatError: its file is missing, altered or broken.
    """
    have = bundle.manifest.adapters
    if name is None and not have:
        return {}
    if name is not None and (name == BASE or name not in have):
        names = [known for known in have if known != BASE]
        fix = nearest(name, names) if names else "export it with: --adapter NAME=FOLDER"
        raise NotFoundError(f"{bundle.path}: no adapter {name!r} in it", fix)
    from zipfile import BadZipFile  # with all it imports, for adapters alone

    path = have[name or BASE]
    check_files(bundle, {path})
    feeds: dict[str, dict[str, Array]] = {}
    try:
        with (bundle.path / path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            for key in file.files:
                graph, _, tensor = key.partition("/")
                feeds.setdefault(graph, {})[tensor] = file[key]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise FormatError(
            f"{bundle.path / path}: no adapter: {error}", "export the bundle again"
        ) from error
    return feeds


def feed(session: Session, engine: str, adapter: Feed) -> None:
    """Let a session compute with `adapter` from its next run on.

    Raises:
        UnsupportedError: the engine cannot switch adapters.
    """
    use = getattr(session, "use", None)
    if use is None:
        raise UnsupportedError(
            f"{engine} cannot switch adapters", "use onnxruntime or openvino (--runtime)"
        )
    use(adapter)
