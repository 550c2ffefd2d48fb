"""The line to one device, over a hub of this process: real boards' functions, no network."""

import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import SimpleNamespace

import msgspec
import pytest

from edgegen import __version__, records
from edgegen import bundle as bundles
from edgegen.errors import EdgeGenError, FormatError, UnsupportedError
from edgegen.fleet import board, cache, line
from edgegen.fleet.board import Arrived, Told
from edgegen.fleet.line import Line, Member, send, workers
from edgegen.survey import Survey

HERE = "tls://pi5"


class Hub:
    """What of a Dask client a line uses; a board is one thread of this process."""

    def __init__(self):
        self.pool, self.known, self.asked, self.told = ThreadPoolExecutor(1), [HERE], [], []
        self.futures, self.silent, self.status = [], False, "running"
        self.scheduler = SimpleNamespace(identity=self.identity)

    def identity(self):
        if self.silent:
            raise OSError("no answer")
        return {"workers": {address: {"name": "pi5"} for address in self.known}}

    def sync(self, function):
        return function()

    def submit(self, function, argument, **options):
        self.asked.append((function, options))
        future = function if isinstance(function, Future) else self.pool.submit(function, argument)
        self.futures.append(future)
        return future

    def run(self, function, *args, workers):
        self.told.append((function, args, workers))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(line, "LOOK_S", 0.01)
    monkeypatch.setattr(cache, "default", lambda: tmp_path / "cache")
    made = Hub()
    yield made
    made.pool.shutdown()


def reach(hub, version=__version__, report=lambda *_: None):
    there = Member("pi5", HERE, version, "3.11.2", False, Survey((), ()))
    return Line(hub, "pi5", there, threading.Event(), report)


def greet(_):
    return msgspec.json.encode(Arrived(7))


def refuse(_):
    return msgspec.json.encode(board.failure(FormatError("x: broken", "mend it")))


def test_the_hubs_own_list_is_asked(hub):
    assert workers(hub) == {HERE: {"name": "pi5"}}


def test_an_answer_comes_from_that_device_alone_and_is_never_tried_on_another(hub):
    assert reach(hub).ask(Arrived, greet, None, 10, "greet") == Arrived(7)
    ((function, options),) = hub.asked
    assert function is greet
    assert options == {
        "workers": [HERE],
        "allow_other_workers": False,
        "resources": {"pi5": 1},
        "retries": 0,
        "pure": False,
    }


def test_what_the_device_raised_is_raised_here_and_the_line_holds(hub):
    to = reach(hub)
    with pytest.raises(FormatError, match=r"^pi5: x: broken$") as error:
        to.ask(Arrived, refuse, None, 10, "greet")
    assert error.value.hint == "mend it"
    assert to.ask(Arrived, greet, None, 10, "greet") == Arrived(7)


def test_a_device_that_never_came_is_asked_nothing(hub):
    to = Line(hub, "pi5", None, threading.Event(), lambda *_: None)
    with pytest.raises(EdgeGenError, match=r"^pi5: went away$") as error:
        to.ask(Arrived, greet, None, 10, "greet")
    assert error.value.hint == "look for it: edgegen devices --fleet"
    assert hub.asked == []


def test_another_version_is_refused_with_what_to_install(hub):
    with pytest.raises(
        UnsupportedError, match=f"pi5: has EdgeGen 0.0.1, here is {__version__}"
    ) as e:
        reach(hub, "0.0.1").ask(Arrived, greet, None, 10, "greet")
    assert f"pip install 'edgegen[fleet]=={__version__}'" in e.value.hint
    assert hub.asked == []


def test_a_time_out_is_called_so_ends_the_work_and_loses_the_line(hub):
    to, never = reach(hub), Future()
    with pytest.raises(EdgeGenError, match=r"pi5: time-out, no answer in 0\.05 s to: sit") as error:
        to.ask(Arrived, never, None, 0.05, "sit")
    assert "give it longer with --timeout" in error.value.hint
    assert never.cancelled()
    assert hub.told == [(board.end, (to.id,), [HERE])]
    with pytest.raises(EdgeGenError) as again:
        to.ask(Arrived, greet, None, 10, "greet")
    assert again.value is error.value
    assert len(hub.asked) == 1


def test_a_device_that_the_hub_no_longer_knows_went_away(hub):
    to = reach(hub)
    hub.known.clear()
    with pytest.raises(EdgeGenError, match=r"^pi5: went away at: sit$") as error:
        to.ask(Arrived, Future(), None, 60, "sit")
    assert "--resume" in error.value.hint
    assert hub.told == []  # nobody is there to be told


def test_of_a_silent_hub_nobody_is_said_to_have_gone(hub):
    to, hub.silent = reach(hub), True
    with pytest.raises(EdgeGenError, match="time-out"):
        to.ask(Arrived, Future(), None, 0.05, "sit")


def test_who_stops_waits_no_longer(hub):
    to, never = reach(hub), Future()
    to.stop.set()
    with pytest.raises(EdgeGenError, match=r"^pi5: stopped$"):
        to.ask(Arrived, never, None, 60, "sit")
    assert never.cancelled()


@pytest.mark.parametrize("error", [CancelledError(), RuntimeError("killed")])
def test_work_that_dask_gave_up_is_a_device_that_went_away(hub, error):
    failed = Future()
    failed.set_exception(error)
    name = type(error).__name__
    with pytest.raises(EdgeGenError, match=rf"pi5: went away \({name}\) at: sit") as caught:
        reach(hub).ask(Arrived, failed, None, 60, "sit")
    assert caught.value.__cause__ is error


def test_of_a_hub_that_went_away_no_device_is_blamed(hub):
    failed, hub.status = Future(), "connecting"
    failed.set_exception(CancelledError())
    with pytest.raises(EdgeGenError, match=r"^pi5: the hub went away at: sit$") as error:
        reach(hub).ask(Arrived, failed, None, 60, "sit")
    assert error.value.hint.startswith("start it again")


@pytest.fixture
def parcel(image_bundle):
    """A bundle with files of 2500 bytes and of none."""
    (image_bundle / "big.bin").write_bytes(bytes(range(250)) * 10)
    (image_bundle / "none.bin").write_bytes(b"")
    manifest = bundles.open_bundle(image_bundle).manifest
    changed = msgspec.structs.replace(manifest, files=bundles.sums(image_bundle))
    records.write(changed, image_bundle / bundles.MANIFEST)
    return bundles.open_bundle(image_bundle)


def pieces(hub):
    return sum(function is board.put for function, _ in hub.asked)


def test_a_bundle_is_sent_in_pieces_once_and_stands_there_whole(hub, parcel, monkeypatch, tmp_path):
    monkeypatch.setattr(line, "PIECE_BYTES", 1000)
    sizes = [one.bytes for one in parcel.manifest.files.values()]
    said = []
    send(reach(hub, report=lambda *told: said.append(told)), parcel, 10)
    assert pieces(hub) == sum(-(-size // 1000) for size in sizes)
    total = sum(sizes) // 1000
    assert said[-1] == ("pi5: send toy-vae, kB", total, total)
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)
    there = tmp_path / "cache/bundles" / parcel.sha256()
    assert bundles.sums(there) == parcel.manifest.files
    hub.asked.clear()
    send(reach(hub), parcel, 10)
    assert [function for function, _ in hub.asked] == [board.wanted]


def test_sending_goes_on_where_the_file_has_come_to(hub, parcel, monkeypatch, tmp_path):
    monkeypatch.setattr(line, "PIECE_BYTES", 1000)
    sha256 = parcel.manifest.files["big.bin"].sha256
    send_whole = sum(-(-one.bytes // 1000) for one in parcel.manifest.files.values())
    cache.put(tmp_path / "cache", sha256, 0, (parcel.path / "big.bin").read_bytes()[:2000])
    send(reach(hub), parcel, 10)
    assert pieces(hub) == send_whole - 2
    assert (tmp_path / "cache/bundles" / parcel.sha256()).is_dir()


def test_a_file_that_is_cut_while_it_is_sent_is_named(hub, parcel):
    (parcel.path / "big.bin").write_bytes(b"short")
    with pytest.raises(FormatError, match=r"big\.bin: was cut while it was sent"):
        send(reach(hub), parcel, 10)


def test_a_file_that_changed_while_it_was_sent_is_refused_there(hub, parcel):
    (parcel.path / "big.bin").write_bytes(bytes(2500))
    with pytest.raises(FormatError, match=r"pi5: big\.bin: did not arrive as it was sent"):
        send(reach(hub), parcel, 10)


def test_the_first_question_is_what_is_there(hub, parcel):
    manifest = (parcel.path / bundles.MANIFEST).read_bytes()
    wanted = reach(hub).ask(Told, board.wanted, manifest, 10, "ask").wanted
    assert not wanted.complete
    assert set(wanted.have.values()) == {0}
