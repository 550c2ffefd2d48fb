"""What is to be measured, where each profile goes, and what is there already."""

import msgspec
import pytest

from edgegen import bundle as bundles
from edgegen import measure, records, tasks
from edgegen.errors import UsageError
from edgegen.tasks import Task


@pytest.fixture
def job(image_bundle):
    return measure.job(image_bundle, runtime="callable")


def test_every_job_is_measured_on_every_place(job):
    found = tasks.on_each([job, job], [("", "cpu"), ("pi5", "gpu")])
    assert [(task.board, task.job.device) for task in found] == [
        ("", "cpu"),
        ("", "cpu"),
        ("pi5", "gpu"),
        ("pi5", "gpu"),
    ]


def test_tasks_of_one_board_take_turns_unless_told_otherwise(job):
    asked = [Task(job, "a"), Task(job, "b"), Task(job, "a")]
    assert tasks.groups(asked, None) == [[asked[0], asked[2]], [asked[1]]]
    assert tasks.groups(asked, True) == tasks.groups(asked, None)
    assert tasks.groups(asked, False) == [[task] for task in asked]
    with pytest.raises(UsageError, match="--interleave: one alone takes no turns") as error:
        tasks.groups(asked[:2], True)
    assert error.value.hint == "give several bundles"


def test_files_are_called_after_bundle_engine_board_and_device(job, tmp_path):
    on_gpu = msgspec.structs.replace(job, device="gpu:1")
    found = tasks.to_files([Task(job), Task(on_gpu, "pi5")], tmp_path / "new")
    assert [task.file.name for task in found] == [
        "toy-vae-callable-cpu.json",
        "toy-vae-callable-pi5-gpu1.json",
    ]
    assert tasks.to_files([Task(job)], tmp_path / "p.json")[0].file == tmp_path / "p.json"
    assert tasks.to_files([Task(job)], None)[0].file is None


def test_a_bundle_that_is_given_twice_has_two_files(job, tmp_path):
    found = tasks.to_files([Task(job), Task(job), Task(job)], tmp_path / "new")
    names = ["toy-vae-callable-cpu", "toy-vae-callable-cpu-2", "toy-vae-callable-cpu-3"]
    assert [task.file.stem for task in found] == names


@pytest.fixture
def done(job, make_profile, tmp_path):
    """A task whose file holds its profile."""
    sha256 = bundles.open_bundle(job.path).sha256()
    task = Task(job, "pi5", tmp_path / "p.json")
    profile = make_profile(
        bundle_sha256=sha256, engine="callable", board="pi5", request=job.request
    )
    records.write(profile, task.file)
    return task


def test_what_is_measured_already_is_not_missing(done, job):
    assert tasks.measured(done)
    other = Task(job, "nuc", done.file.with_name("other.json"))
    assert tasks.missing([[done, other], [done]]) == [[other]]


@pytest.mark.parametrize(
    "change",
    [
        {"bundle_sha256": "1" * 64},
        {"board": "nuc"},
        {"device": "gpu"},
        {"engine": "onnxruntime"},
        {"repeats": 2},
        {"warmup": 0},
        {"threads": 4},
        {"adapter": "french"},
    ],
)
def test_a_profile_of_something_else_is_no_substitute(done, change):
    found = records.read(measure.Profile, done.file)
    records.write(msgspec.structs.replace(found, **change), done.file)
    assert not tasks.measured(done)


def test_a_file_that_is_no_profile_is_no_substitute_either(done):
    done.file.write_text("{")
    assert not tasks.measured(done)
    assert not tasks.measured(msgspec.structs.replace(done, file=None))


def test_profiles_of_two_adapters_go_to_two_files(job, tmp_path):
    options = [msgspec.structs.replace(job.options, adapter=name) for name in ("none", "french")]
    jobs = [msgspec.structs.replace(job, options=each) for each in options]
    files = tasks.to_files(tasks.on_each(jobs, [("", "cpu")]), tmp_path / "profiles")
    stems = [task.file.stem for task in files]
    assert "-none-" in stems[0] and "-french-" in stems[1]


def test_without_an_adapter_is_what_a_bundle_without_any_is(done):
    none = msgspec.structs.replace(done.job.options, adapter="none")
    assert tasks.measured(
        msgspec.structs.replace(done, job=msgspec.structs.replace(done.job, options=none))
    )
