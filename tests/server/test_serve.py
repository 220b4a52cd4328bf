"""The whole server, as an operator meets it: real processes, real signals, the demo model."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from openai import OpenAI
from PIL import Image

import omnimuse
from omnimuse.cli import main
from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ConfigError, ModelError, StorageError
from omnimuse.deploy.pool import Pool, PoolPlan
from omnimuse.deploy.scale import Scale
from omnimuse.server.http.keys import Keys
from omnimuse.server.jobs.attempt import JobRules
from omnimuse.server.jobs.book import Jobs
from omnimuse.server.jobs.database import take_lock
from omnimuse.server.jobs.files import Files
from omnimuse.server.jobs.store import JobStore
from omnimuse.server.listening import end, listen, make_room_for, serve_beside
from omnimuse.server.metrics import Metrics
from omnimuse.server.options import Reach, ServeOptions
from omnimuse.server.orders.admission import Admission
from omnimuse.server.routes.health import measurements
from omnimuse.server.serve import Sockets, _run, allowed_faults, open_parts
from omnimuse.server.service import Lifecycle, Service
from omnimuse.worker.find import find
from tests.processes import alive, children, has_torch, wait_gone
from tests.server.asgi import call, scope
from tests.server.browser import browser_only, browsing, expect, opened
from tests.server.picture_server import service_in
from tests.server.whole_server import Answer, WholeServer, pixels


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    with WholeServer(tmp_path_factory.mktemp("serve"), "--admin-address", "127.0.0.1:0") as found:
        found.wait_ready()
        yield found


@pytest.mark.costly
def test_an_admin_plane_that_takes_a_free_port_tells_which(server: WholeServer) -> None:
    [url] = re.findall(r"omnimuse: the admin plane is at (http://127\.0\.0\.1:[1-9]\d*)\n", server.text)
    with urllib.request.urlopen(f"{url}/admin/status", timeout=30) as answer:
        assert answer.status == 200 and url != server.url


def test_the_printed_curl_line_draws_a_picture(server: WholeServer, tmp_path: Path) -> None:
    line = re.search(r"curl    (curl.*?)\n\n?  python", server.text, re.S)
    assert line is not None
    subprocess.run(["bash", "-c", line[1]], check=True, cwd=tmp_path, timeout=60)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (128, 128)


def test_the_printed_python_lines_draw_a_picture(server: WholeServer) -> None:
    lines = re.search(r"python  (from openai.*?)\n\n", server.text, re.S)
    assert lines is not None
    script = "\n".join(line.strip() for line in lines[1].splitlines()) + "\nprint(len(picture.data[0].b64_json))"
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=100)
    assert int(told.stdout) > 1000


def test_the_front_process_never_loads_torch(server: WholeServer) -> None:
    server.draw(seed=1)
    assert not has_torch(server.process.pid)
    assert any(has_torch(pid) for pid in server.workers())


def test_the_official_client_streams_partial_pictures(server: WholeServer) -> None:
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        events = list(
            client.images.generate(
                model="omnimuse/shapes", prompt="a green star", stream=True, partial_images=2, extra_body={"seed": 3}
            )
        )
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert {Image.open(io.BytesIO(base64.b64decode(event.b64_json))).mode for event in events} == {"RGB"}


@browser_only
def test_the_page_draws_a_picture_in_a_real_browser(server: WholeServer) -> None:
    said: list[str] = []
    with browsing() as browser, opened(browser, server.url) as page:
        page.on("console", lambda message: said.append(message.text))
        page.reload()
        page.locator("#prompt").fill("a red circle on a blue background")
        page.locator("#draw").click()
        expect(page.locator("#status")).to_contain_text("Done")
        shown = page.locator("#stage img").first.evaluate("async (image) => (await image.decode(), image.naturalWidth)")
    assert shown == 128
    assert said == []


def test_a_killed_worker_is_replaced_and_its_request_drawn_again(server: WholeServer) -> None:
    wanted = pixels(server.draw(seed=5, num_inference_steps=100))
    answers: list[Answer] = []
    drawing = threading.Thread(target=lambda: answers.append(server.draw(seed=5, num_inference_steps=100)))
    drawing.start()
    end = time.monotonic() + 30
    while not server.ask("/load").json["requests"] and time.monotonic() < end:
        time.sleep(0.02)
    [worker] = [pid for pid in server.workers() if has_torch(pid)]
    os.kill(worker, signal.SIGKILL)
    drawing.join(110)
    assert pixels(answers[0]) == wanted
    assert 'omnimuse_worker_restarts_total{cause="exit"} 1.0' in _metrics(server)


def _metrics(server: WholeServer) -> str:
    return subprocess.run(
        ["curl", "-s", server.url + "/metrics"], check=True, capture_output=True, text=True, timeout=20
    ).stdout


@pytest.mark.costly
def test_a_model_in_a_folder_is_called_by_the_folders_name_and_no_path_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "my-shapes"
    folder.parent.mkdir()
    folder.symlink_to(Path(omnimuse.__file__).parent / "bundled" / "shapes")
    with WholeServer(tmp_path / "server", str(folder)) as server:
        server.wait_ready()
        [model] = server.ask("/v1/models").json["data"]
        assert model["id"] == "my-shapes"
        small = {"size": "64x64", "num_inference_steps": 2}  # a folder has the defaults of its family, not of the demo
        said = server.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "a circle"}], **small})
        assert said.json["model"] == "my-shapes"
        assert server.draw(model=str(folder), **small).json["error"]["message"].endswith("this server serves my-shapes")
        metrics = _metrics(server)
        assert 'model="my-shapes"' in metrics and str(tmp_path) not in metrics
        assert str(tmp_path) not in server.text


@pytest.mark.parametrize("away", [False, True])
def test_a_drain_that_fails_is_logged_and_the_server_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, away: bool
) -> None:
    class BrokenJobs(Jobs):
        async def hold(self) -> None:
            raise StorageError("the disk is gone")

    class Idle(Pool):
        async def wait_ready(self) -> None:
            await asyncio.Event().wait()

        @property
        def asleep(self) -> bool:
            return away

    found = find(Config(ModelConfig("omnimuse/shapes")))
    options = ServeOptions(tmp_path, "omnimuse/shapes")
    pool = Idle(PoolPlan(found.config, found.spec, tmp_path))
    files, admission, metrics = Files(tmp_path), Admission(options), Metrics("omnimuse/shapes")

    async def main() -> None:
        store = await JobStore.open(tmp_path / "jobs.sqlite")
        jobs = BrokenJobs(store, files, pool, admission, metrics, JobRules(found.spec, 1.0))
        keys, life = Keys.load(None), Lifecycle(draining=True)
        service = Service(options, found.door, pool, admission, files, jobs, keys, metrics, life)
        try:
            with listen(("127.0.0.1", 0)) as listener:
                await asyncio.wait_for(_run(service, pool, Sockets(listener)), 20)
        finally:
            await store.close()

    asyncio.run(main())
    [record] = [record for record in caplog.records if "the drain failed" in record.message]
    assert record.exc_info is not None and "the disk is gone" in str(record.exc_info[1])
    [began] = [record.message for record in caplog.records if record.message.startswith("draining: 0 in progress get")]
    assert ("when the weights are back (POST /wake_up on the admin plane)" in began) is away


CLOSINGS = 5
"""Parts of a server that are closed: its jobs, its workers, the task of its sandbox, the sandbox, the job store."""


@pytest.mark.parametrize("number", range(1, CLOSINGS + 1))
def test_each_part_is_closed_although_the_closing_of_another_fails(tmp_path: Path, number: int) -> None:
    found = find(Config(ModelConfig("omnimuse/shapes")))
    before = children(os.getpid())
    begun: list[int] = []

    async def main() -> None:
        async with AsyncExitStack() as closings:
            options = ServeOptions(tmp_path, "omnimuse/shapes")
            service, pool = await open_parts(closings, found, options, asked=f"serve.close:{number}:fail")
            await service.jobs.start()
            await pool.start()
            while len(begun) < 2:  # a worker, and a process that reads pictures
                begun[:] = sorted(set(children(os.getpid())) - set(before))
                await asyncio.sleep(0.02)

    with pytest.raises(ModelError, match=f"serve.close:{number}:fail"):
        asyncio.run(main())
    assert wait_gone(begun)
    os.close(take_lock(tmp_path / "jobs.sqlite.lock"))


def test_a_server_without_faults_closes_as_many_parts_as_the_test_above_lets_fail(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncExitStack() as closings:
            found, options = find(Config(ModelConfig("omnimuse/shapes"))), ServeOptions(tmp_path, "omnimuse/shapes")
            await open_parts(closings, found, options, asked=f"serve.close:{CLOSINGS + 1}:fail")

    asyncio.run(main())


def test_workers_share_memory_with_those_that_stay(tmp_path: Path) -> None:
    async def main() -> int:
        async with AsyncExitStack() as closings:
            found = find(Config(ModelConfig("omnimuse/shapes")))
            options = ServeOptions(tmp_path, "omnimuse/shapes", scale=Scale(least=2, most=8))
            _, pool = await open_parts(closings, found, options)
            config = pool.plan.config
            return replace(config, host=replace(config.host, processes=8)).sharing  # as each of them starts

    assert asyncio.run(main()) == 2


SLOWLY = "worker.step:5:pause:slow"


def begin_slowly(server: WholeServer) -> tuple[threading.Thread, list[Answer]]:
    """A request that pauses (a server with the fault `SLOWLY`) and is in progress; its answer comes into the list."""
    answers: list[Answer] = []
    drawing = threading.Thread(target=lambda: answers.append(server.draw(prompt="a slow circle")))
    drawing.start()
    while not server.ask("/load").json["requests"]:
        time.sleep(0.02)
    return drawing, answers


@pytest.mark.costly(turns=3)
def test_a_drain_finishes_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    with WholeServer(tmp_path, faults=SLOWLY) as server:
        server.wait_ready()
        workers = server.workers()
        drawing, answers = begin_slowly(server)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        late, ready = server.draw(), server.ask("/readyz")
        assert (late.status, late.json["error"]["code"]) == (503, "server_draining")
        assert ready.status == 503 and "shutting down" in ready.json["reasons"][0]
        drawing.join(60)
        assert answers[0].status == 200
        assert server.process.wait(20) == 0
        assert wait_gone(workers)


@pytest.mark.costly
def test_a_drain_that_takes_too_long_tells_those_who_still_wait(tmp_path: Path) -> None:
    with WholeServer(tmp_path, "--drain-timeout", "0.5", faults=SLOWLY) as server:
        server.wait_ready()
        workers = server.workers()
        drawing, answers = begin_slowly(server)
        status = server.end()
        drawing.join(60)
        assert status == 0
        assert (answers[0].status, answers[0].json["error"]["code"]) == (503, "server_draining")
        assert int(answers[0].headers["retry-after"]) >= 1
        assert wait_gone(workers)


HELD = (
    b"",
    b"GET /livez HTTP/1.1\r\nHost: local",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 500\r\n\r\n{",
)
"""Nothing, half a head, a request that was answered, half a body."""


@pytest.mark.costly(turns=3)
def test_an_idle_server_ends_at_once_and_closes_connections_that_are_held_open(tmp_path: Path) -> None:
    """Without the time that what is in progress would get."""
    with WholeServer(tmp_path, "--drain-timeout", "100000") as server, ExitStack() as held:
        server.wait_ready()
        workers = server.workers()
        place = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        sockets = [held.enter_context(socket.create_connection(place, timeout=30)) for _ in HELD]
        for connection, sent in zip(sockets, HELD, strict=True):
            connection.sendall(sent)
        sockets[2].recv(4096)
        assert server.end() == 0
        assert wait_gone(workers)
        for connection in sockets:
            with suppress(ConnectionResetError):
                while connection.recv(4096):  # a last answer; a connection that stays open ends this by a timeout
                    pass


def test_an_interrupt_while_a_worker_starts_waits_for_no_start_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with WholeServer(tmp_path, faults="worker.start:1:hang:always") as server:
        assert server.url
        while not (workers := server.workers()):
            time.sleep(0.02)
        server.end(signal.SIGINT)
        assert wait_gone(workers)


@pytest.mark.costly
def test_accepted_jobs_survive_the_death_of_everything(tmp_path: Path) -> None:
    with WholeServer(tmp_path) as server:
        server.wait_ready()
        jobs = [server.draw(background=True, seed=seed, num_inference_steps=30).json["id"] for seed in range(4)]
        workers = server.workers()
        server.process.kill()
        server.process.wait()
        assert wait_gone(workers), "workers outlive their parent"
    with WholeServer(tmp_path) as server:
        server.wait_ready()
        end = time.monotonic() + 60
        states = [""]
        while set(states) != {"completed"} and time.monotonic() < end:
            states = [server.ask(f"/v1/images/{job}").json["status"] for job in jobs]
            time.sleep(0.1)
        assert states == ["completed"] * 4
        assert not list((tmp_path / "data" / "spool").iterdir())


@pytest.fixture
def start_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str]]]:
    """Starts a server that must refuse to, in this process: the exit status, and what it printed."""
    root = logging.getLogger()
    handlers = list(root.handlers)

    def start(*options: str) -> tuple[int, str]:
        status = main(["serve", "--data", str(tmp_path / "data"), "--port", "0", *options])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    yield start
    root.handlers[:] = handlers


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "no API key"),
        (("--host", "0.0.0.0", "--insecure-no-auth"), "--allowed-host"),
        (("--metrics-address", "9100"), "no HOST:PORT"),
        (("--api-key-file", "/nowhere/keys"), "cannot be read"),
        (("nothing/here",), "nothing/here"),
        (("--warm-up", "20x32"), "--warm-up 20x32 does not fit this model: width=20 is not a multiple of 16"),
    ],
)
def test_a_start_that_cannot_work_ends_before_anything_is_loaded(
    options: tuple[str, ...], said: str, start_told: Callable[..., tuple[int, str]]
) -> None:
    before = children(os.getpid())
    status, told = start_told(*options)
    assert status in (1, 2) and said in told and "Traceback" not in told
    assert children(os.getpid()) == before


def test_faults_are_made_for_this_machine_only_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    public = ServeOptions(tmp_path, "m", Reach("0.0.0.0", allowed_hosts=("art.example",)), insecure=True)
    with pytest.raises(ConfigError, match="OMNIMUSE_FAULT"):
        allowed_faults("worker.step:1:kill", public)
    assert allowed_faults("", public) == ""
    with caplog.at_level(logging.WARNING):
        assert allowed_faults("worker.step:1:kill", ServeOptions(tmp_path, "m")) == "worker.step:1:kill"
    assert "worker.step:1:kill" in caplog.text


def test_measurements_have_an_address_of_their_own_where_they_are_given_one(tmp_path: Path) -> None:
    """A key opens the server; the measurements need none where they are, and nothing else is there."""

    def get(url: str) -> int:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    async def main() -> None:
        reach = Reach(metrics=("127.0.0.1", 0))
        async with service_in(tmp_path, lambda options: replace(options, reach=reach)) as (app, service):
            assert (await call(app, scope(path="/metrics"))).status == 404
            with listen(("127.0.0.1", 0)) as listener:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                server = await serve_beside([measurements(service)], listener)
                asked = [asyncio.to_thread(get, url + path) for path in ("/metrics", "/v1/models", "/livez")]
                assert await asyncio.gather(*asked) == [200, 404, 404]
                await end(server)

    asyncio.run(main())


def test_more_connections_than_files_may_be_open_are_refused_at_the_start() -> None:
    make_room_for(16)
    with pytest.raises(ConfigError, match="--max-connections"):
        make_room_for(2**40)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(start_told: Callable[..., tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, told = start_told("--port", str(port))
    assert status == 2 and f"cannot listen on 127.0.0.1:{port}" in told


def test_the_log_tells_the_threads_the_warm_up_and_when_a_worker_is_ready(server: WholeServer) -> None:
    told = [r"worker 0: threads: \d+, .+", r"worker 0: warming up with 16x16, \d steps?, \d+\.\d s"]
    for line in (*told, r"worker 0 is ready after \d+\.\d s"):
        server.wait_for(line)


@pytest.mark.costly
def test_omp_num_threads_is_what_workers_share(tmp_path: Path) -> None:
    options = ("--replicas", "2", "--warm-up", "none")
    with WholeServer(tmp_path, *options, environment={"OMP_NUM_THREADS": "6"}) as server:
        server.wait_for("worker [01]: threads: 3, 6 shared by 2 processes: OMP_NUM_THREADS says so")
        server.wait_ready()
        assert "warming up" not in server.text


@pytest.mark.costly
@pytest.mark.timeout(240)
def test_a_worker_is_added_while_requests_find_no_place_and_ends_when_it_has_nothing_to_do(tmp_path: Path) -> None:
    options = ("--max-replicas", "2", "--grow-after", "0.5", "--shrink-after", "2", "--warm-up", "none")
    enough, statuses = threading.Event(), list[int]()

    def crowd() -> None:  # eight of these have 80 outputs in progress, and a worker has 64 places
        while not enough.is_set():
            statuses.append(server.draw(n=10, num_inference_steps=4, size="64x64").status)

    with WholeServer(tmp_path, *options) as server:
        server.wait_for("1 to 2 workers")
        working = [threading.Thread(target=crowd) for _ in range(8)]
        for each in working:
            each.start()
        try:
            server.wait_for("worker 1 is ready")
            assert 'omnimuse_workers{state="ready"} 2.0' in _metrics(server)
        finally:
            enough.set()
        for each in working:
            each.join(110)
        server.wait_for(r"worker \d had nothing to do and ends; 1 are left")
        assert 'omnimuse_workers{state="ready"} 1.0' in _metrics(server)
        assert set(statuses) == {200}


def test_a_second_server_on_the_same_folder_is_refused(server: WholeServer) -> None:
    with WholeServer(server.folder) as second:
        assert second.process.wait(60) in (1, 2)
    assert alive(server.process.pid)
    assert server.draw(seed=1).status == 200
