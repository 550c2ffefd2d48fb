"""What one `edgegen profile` is to measure, and which file each profile goes to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from edgegen import profile as profiles
from edgegen import records
from edgegen.bundle import NONE, open_bundle
from edgegen.errors import EdgeGenError, UsageError
from edgegen.workload import Job


class Task(Struct, frozen=True):
    """A job; the board of a fleet it is for, or "" for this machine; its file, if it has one."""

    job: Job
    board: str = ""
    file: Path | None = None


def on_each(jobs: Sequence[Job], places: Sequence[tuple[str, str]]) -> list[Task]:
    """Every job on every place: (board, device), board "" for this machine."""
    return [
        Task(msgspec.structs.replace(job, device=device), board)
        for board, device in places
        for job in jobs
    ]


def groups(tasks: Sequence[Task], interleave: bool | None) -> list[list[Task]]:
    """What is measured in turns: all tasks of one board, or each alone; None leaves it open.

    Raises:
        UsageError: turns were asked for, and there is nothing to take turns with.
    """
    if interleave is False:
        return [[task] for task in tasks]
    found = [[t for t in tasks if t.board == one] for one in dict.fromkeys(t.board for t in tasks)]
    if interleave and all(len(group) == 1 for group in found):
        raise UsageError("--interleave: one alone takes no turns", "give several bundles")
    return found


def to_files(tasks: Sequence[Task], output: Path | None) -> list[Task]:
    """The tasks with their files: `output` for one, in the folder `output` for several.

    A bundle that is given twice, to see how far it is from itself, has a second file NAME-2.json.

    Raises:
        UsageError: a file for several, two of one name, or a place nothing can be written to.
    """
    if output is None:
        return list(tasks)
    if len(tasks) == 1 and not output.is_dir():
        return [msgspec.structs.replace(tasks[0], file=records.target(output))]
    if output.suffix == ".json" or (output.exists() and not output.is_dir()):
        several = f"-o {output} is a file, but there are {len(tasks)} profiles"
        raise UsageError(several, "give a folder")
    stems: dict[str, Task] = {}
    for task in tasks:
        stem = _stem(task)
        if stem in stems and stems[stem].job.path != task.job.path:
            raise UsageError(f"two profiles would be {output / stem}.json", "rename one bundle")
        again = (f"{stem}-{number}" for number in range(2, len(tasks) + 1))
        stems[next(name for name in (stem, *again) if name not in stems)] = task
    return [
        msgspec.structs.replace(task, file=records.target(output / f"{stem}.json"))
        for stem, task in stems.items()
    ]


def _stem(task: Task) -> str:
    """vae-int8-openvino-cpu; of a fleet vae-int8-openvino-pi5-cpu; gpt-french-openvino-cpu."""
    job = task.job
    bundle = os.path.basename(os.path.abspath(job.path))
    parts = bundle, job.options.adapter, job.runtime, task.board, job.device.replace(":", "")
    return "-".join(part for part in parts if part)


def missing(tasks: Sequence[Sequence[Task]]) -> list[list[Task]]:
    """The groups without what has its profile already; none that is empty."""
    left = [[task for task in group if not measured(task)] for group in tasks]
    return [group for group in left if group]


def measured(task: Task) -> bool:
    """Does the task's file hold its profile already: this bundle, request, board and repeats?"""
    if task.file is None or not task.file.is_file():
        return False
    try:
        found = profiles.read(task.file)
    except EdgeGenError:
        return False  # another program's, or half of one
    job, bundle = task.job, open_bundle(task.job.path)
    adapter = job.options.adapter or bundle.manifest.adapter
    return (
        found.bundle_sha256 == bundle.sha256()
        and found.adapter == ("" if adapter == NONE else adapter)
        and found.request == job.request
        and (found.board, found.device) == (task.board, job.device)
        and (found.warmup, found.repeats) == (job.warmup, job.repeats)
        and found.threads == job.options.threads
        and job.runtime in (None, found.engine)
    )
