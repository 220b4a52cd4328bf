"""Traces of several ranks become one, and nothing of theirs is taken for another's."""

from __future__ import annotations

import gzip
import json
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse.core.errors import CapacityError
from omnimuse.observe.profile import Recorder, merge, most_recorded, part_of, recorded


def written(path: Path, base: int, events: list[dict[str, Any]]) -> Path:
    content = {"schemaVersion": 1, "baseTimeNanoseconds": base, "traceEvents": events}
    path.write_text(json.dumps(content))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    whole = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    return whole["traceEvents"]  # type: ignore[no-any-return]


def test_ranks_with_the_same_numbers_of_processes_and_arrows_stay_apart_and_in_one_time(tmp_path: Path) -> None:
    events = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
        {"ph": "X", "name": "mm", "pid": 0, "tid": 5, "ts": 10.0, "dur": 1.0},
        {"ph": "s", "name": "ac2g", "pid": 0, "tid": 5, "ts": 10.0, "id": 3},
        {"ph": "f", "name": "ac2g", "pid": "Spans", "tid": 5, "ts": 12.0, "id": 3},
    ]
    whole = tmp_path / "whole.json.gz"
    parts = [written(part_of(whole, rank), base, events) for rank, base in ((0, 5_000), (1, 7_000))]
    merge(parts, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.json.gz"]
    first, second = read(whole)[:4], read(whole)[4:]
    assert [e["args"]["name"] for e in (first[0], second[0])] == ["rank 0: python", "rank 1: python"]
    assert [[e.get("ts") for e in half] for half in (first, second)] == [
        [None, 10.0, 10.0, 12.0],
        [None, 12.0, 12.0, 14.0],
    ]
    for name in ("pid", "id"):
        assert not {e[name] for e in first if name in e} & {e[name] for e in second if name in e}
    for half in (first, second):
        assert half[2]["id"] == half[3]["id"]
        assert half[0]["pid"] == half[1]["pid"] != half[3]["pid"]


@contextmanager
def without_room() -> Iterator[None]:
    """No file may have more than ten bytes."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, most[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_refuses_a_trace_is_told_by_its_name_and_keeps_no_part_of_it(tmp_path: Path) -> None:
    whole = tmp_path / "whole.json.gz"
    parts = [written(part_of(whole, rank), 0, []) for rank in range(2)]
    with without_room(), pytest.raises(OSError, match=r"/whole\.json\.gz"):
        merge(parts, whole)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_refuses_the_part_of_a_rank_is_told_by_the_name_of_the_whole(rank: int, tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.start()
    with without_room(), pytest.raises(OSError, match=r"/whole\.json\.gz"):
        recorder.write(tmp_path / "whole.json.gz", rank)
    assert not list(tmp_path.iterdir())


def test_a_recording_is_whole_in_a_folder_that_was_not_there(tmp_path: Path) -> None:
    recorder, whole = Recorder(), tmp_path / "new" / "t.json.gz"
    recorder.start()
    torch.ones(3).sum()
    recorder.write(whole)
    [file] = (tmp_path / "new").iterdir()
    assert file == part_of(whole, 0)
    merge([file], whole)
    assert list((tmp_path / "new").iterdir()) == [whole]
    assert {"aten::sum", "memory of the CPU"} <= {event.get("name") for event in read(whole)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_event_of_memory_is_a_point_of_a_line_whoever_else_was_recorded(ranks: int, tmp_path: Path) -> None:
    """Of one rank nothing else is read."""
    whole, recorder = tmp_path / "whole.json.gz", Recorder()
    recorder.start()
    torch.ones(4, 4) @ torch.ones(4, 4)
    recorder.write(whole)
    kept = read(part_of(whole, 0))
    merge([part_of(whole, 0), *(written(part_of(whole, rank), 0, []) for rank in range(1, ranks))], whole)
    found = read(whole)
    told = [each["args"]["Total Allocated"] for each in kept if each.get("name") == "[memory]"]
    assert told == [each["args"]["allocated bytes"] for each in found if each["ph"] == "C"] and any(told)
    rest = [each for each in found if each["ph"] != "C"]
    assert [each.get("name") for each in rest] == [each.get("name") for each in kept]
    assert ranks > 1 or rest == kept
    assert not part_of(whole, 0).exists()


def test_a_recording_that_nobody_ended_is_dropped_for_the_next(tmp_path: Path) -> None:
    """Torch would refuse the second on this thread for ever."""
    recorder = Recorder()
    recorder.start()
    torch.ones(3).sum()
    recorder.start()
    torch.ones(3).prod()
    recorder.write(tmp_path / "t.json.gz")
    names = {event.get("name") for event in read(part_of(tmp_path / "t.json.gz", 0))}
    assert "aten::prod" in names and "aten::sum" not in names
    assert not recorded()


def test_what_another_thread_records_is_not_lost_to_a_second_recording_and_what_counts_waits_for_none() -> None:
    recorder, other = Recorder(), Recorder()
    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(recorder.start).result()
        try:
            with pytest.raises(CapacityError, match="another engine of this process is being recorded"):
                other.start()
            assert most_recorded(lambda: pytest.fail("it is done in vain")) is None
        finally:
            elsewhere.submit(recorder.drop).result()
    other.start()
    other.drop()
    assert most_recorded(lambda: torch.ones(2**20)) is not None


def test_a_rank_that_cannot_write_says_so_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    recorder.start()
    (tmp_path / "file").touch()
    recorder.try_to(lambda: recorder.write(tmp_path / "file" / "x.json.gz"))
    assert "this rank could not be recorded" in caplog.text
    (tmp_path / "file").unlink()


def test_whose_part_lacks_is_told_and_the_others_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, event = tmp_path / "whole.json.gz", {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "it"}}
    merge([written(part_of(whole, 0), 0, [event]), part_of(whole, 1), written(part_of(whole, 2), 0, [event])], whole)
    assert [each["args"]["name"] for each in read(whole)] == ["rank 0: it", "rank 2: it"]
    assert json.loads(gzip.decompress(whole.read_bytes()))["missing"] == ["rank 1"]
    assert "nothing of rank 1, whose log says why" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"/other\.json\.gz"):
        merge([part_of(whole, 0), part_of(whole, 1)], tmp_path / "other.json.gz")
    assert list(tmp_path.iterdir()) == [whole]


def test_what_an_earlier_recording_left_is_not_taken_for_the_part_of_a_later_one(tmp_path: Path) -> None:
    stale = part_of(tmp_path / "t.json.gz", 1)
    stale.write_text("{}")
    Recorder().write(tmp_path / "t.json.gz", 1)  # one that could not begin
    assert not stale.exists()
