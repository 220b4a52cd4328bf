"""Finding models: bundled, on disk, in the hub's cache, on a hub (a small one of our own, over HTTP)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.loader.hub import Hub, wanted_files
from omnimuse.loader.resolve import Folder, Places, list_local, resolve

COMMIT = "c0ffee" * 6 + "c0ff"


@pytest.fixture
def places(tmp_path: Path, plain: Path) -> Places:
    """A bundled model `shapes` and a cached one `someone/Toy-Image`; the network is off."""
    shutil.copytree(plain, tmp_path / "bundled/shapes")
    cache(tmp_path / "cache", "someone/Toy-Image", plain)
    (tmp_path / "cache/models--someone--words").mkdir()
    return Places(tmp_path / "bundled", Hub(tmp_path / "cache", offline=True))


def cache(folder: Path, repo: str, content: Path) -> Path:
    model = folder / ("models--" + repo.replace("/", "--"))
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text(COMMIT)
    shutil.copytree(content, model / "snapshots" / COMMIT)
    return model / "snapshots" / COMMIT


def refusal(model: str, places: Places, known: tuple[str, ...] = ()) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(model, known, places)
    return str(caught.value)


def test_a_bundled_model_is_found_by_its_id(places: Places) -> None:
    assert resolve("omnimuse/shapes", (), places) == Folder("omnimuse/shapes", places.bundled / "shapes", "bundled")


def test_a_local_folder_is_found_by_its_path(places: Places, plain: Path) -> None:
    assert resolve(f"{plain}/", (), places) == Folder(str(plain), plain, "local")


def test_a_folder_whose_path_begins_as_the_ids_of_bundled_models_do_is_one(
    places: Places, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "bundled/shapes", "shapes"):
        shutil.copytree(plain, tmp_path / "work/omnimuse" / name)
    monkeypatch.chdir(tmp_path / "work")
    for name in ("omnimuse/mine", "omnimuse/bundled/shapes/"):
        assert resolve(name, (), places) == Folder(name.rstrip("/"), tmp_path / "work" / name, "local")
    assert resolve("omnimuse/shapes", (), places).source == "bundled"
    assert "no model 'omnimuse/shape' is bundled with omnimuse. Did you mean omnimuse/shapes?" in refusal(
        "omnimuse/shape", places
    )


def test_a_cached_model_is_found_without_network_with_or_without_revision(places: Places) -> None:
    found = resolve("someone/Toy-Image", (), places)
    assert (found.source, found.path.name) == ("hub", COMMIT)
    assert resolve(f"someone/Toy-Image@{COMMIT}", (), places).path == found.path
    assert resolve("someone/Toy-Image@main", (), places).id == "someone/Toy-Image@main"


def test_models_on_this_machine_are_listed_pipelines_only(places: Places) -> None:
    assert [(folder.id, folder.source) for folder in list_local(places)] == [
        ("omnimuse/shapes", "bundled"),
        ("someone/Toy-Image", "hub"),
    ]


def test_an_empty_machine_lists_nothing(tmp_path: Path) -> None:
    assert list_local(Places(tmp_path / "none", Hub(tmp_path / "none"))) == []


@pytest.mark.parametrize("name", ["shapes", "omnimuse/shape", "Shapes"])
def test_an_unknown_name_is_refused_with_the_closest_ones(places: Places, name: str) -> None:
    message = refusal(name, places)
    assert "Did you mean omnimuse/shapes?" in message
    assert "Use a bundled model (omnimuse/shapes), the path of a folder with model_index.json, or a hub id" in message


def test_known_and_cached_ids_are_suggested(places: Places) -> None:
    assert "Did you mean owner/Known-Image" in refusal("owner/Known-Imag", places, ("owner/Known-Image",))
    assert "Did you mean someone/Toy-Image" in refusal("toy-image", places)


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "a/b@c d", "a/..", "../nothing-here-7", "/nowhere/at/all", "~/nothing-here-7"]
)
def test_what_cannot_be_a_model_is_refused_with_what_is_allowed(places: Places, name: str) -> None:
    assert "Use a bundled model" in refusal(name, places)


@pytest.mark.parametrize("name", ["small-Q4_K_M.gguf", "models/flux.safetensors", "/nowhere/flux.safetensors"])
def test_a_single_file_that_is_not_there_is_told_as_a_file(places: Places, name: str) -> None:
    assert refusal(name, places) == f"there is no file {name} on this machine; give the path of one that is there"


def test_offline_a_model_that_is_not_cached_says_what_to_do(places: Places) -> None:
    message = refusal("other/model", places)
    assert "not in the cache and the hub is switched off (HF_HUB_OFFLINE)" in message
    assert "hf download other/model" in message


def test_offline_a_model_that_is_partly_cached_names_what_is_missing(places: Places) -> None:
    snapshot = places.hub.cached("someone/Toy-Image", None)
    assert snapshot is not None
    (snapshot / "net/diffusion_pytorch_model.safetensors").unlink()
    message = refusal("someone/Toy-Image", places)
    assert "only partly in the cache" in message
    assert "net has no *.safetensors weights" in message


def test_resolving_imports_no_torch() -> None:
    code = (
        "import sys, omnimuse.loader.resolve as r, omnimuse.loader.checkpoint; r.list_local();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- what is downloaded --------------------------------------------------------------------------------------------


def test_single_file_copies_and_variants_of_plain_weights_are_not_downloaded() -> None:
    files = [
        "model_index.json",
        "flat.safetensors",
        "picture.png",
        "tokenizer/merges.txt",
        "tokenizer/chat_template.jinja",
        "net/config.json",
        "net/model.safetensors",
        "net/model.fp16.safetensors",
        "net/pytorch_model.bin",
        "half/model.fp16.safetensors",
        "half/model.safetensors.index.fp16.json",
    ]
    assert set(files) - set(wanted_files("a/b", files)) == {
        "flat.safetensors",
        "picture.png",
        "net/model.fp16.safetensors",
        "net/pytorch_model.bin",
    }


def test_a_repository_that_is_no_pipeline_is_refused_before_download() -> None:
    with pytest.raises(ModelError, match=r"has no model_index.json.*holds flat.safetensors.*-Diffusers"):
        wanted_files("a/b", ["flat.safetensors"])


def test_a_repository_with_pickles_only_is_refused_before_download() -> None:
    with pytest.raises(ModelError, match=r"only pickles \(net/model.bin\), which can run any code"):
        wanted_files("a/b", ["model_index.json", "net/model.bin"])


def test_of_a_language_model_copies_for_other_libraries_are_not_downloaded() -> None:
    files = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "onnx/model.safetensors",
        "onnx/config.json",
        "model.gguf",
    ]
    left = {"pytorch_model.bin", "onnx/model.safetensors", "onnx/config.json", "model.gguf"}
    assert set(files) - set(wanted_files("a/b", files)) == left
    with pytest.raises(ModelError, match=r"no \*.safetensors weights, only pickles"):
        wanted_files("a/b", ["config.json", "generation_config.json", "pytorch_model.bin", "onnx/a.safetensors"])


# -- over HTTP -----------------------------------------------------------------------------------------------------

ERRORS = {
    "a/gated": (403, "GatedRepo"),
    "a/none": (404, "RepoNotFound"),
    "a/toy@nope": (404, "RevisionNotFound"),
    "a/broken": (501, ""),
}

CLIENT = """
import json, sys
from pathlib import Path
from omnimuse.core.errors import ModelError
from omnimuse.loader.hub import Hub
from omnimuse.loader.resolve import Places, resolve

endpoint, cache, *models = sys.argv[1:]
for model in models:
    here = "http://127.0.0.1:9" if model == "a/unreachable" else endpoint
    try:
        print(json.dumps(str(resolve(model, (), Places(Path(cache) / "none", Hub(Path(cache), here))).path)))
    except ModelError as problem:
        print(json.dumps(str(problem)))
"""


@pytest.fixture
def hub(plain: Path) -> Iterator[str]:
    """The address of a hub with one model, `a/toy`, and the failures in ERRORS."""
    (plain / "net/pytorch_model.bin").write_bytes(b"pickle")
    with hub_of(plain) as address:
        yield address


@contextmanager
def hub_of(content: Path) -> Iterator[str]:
    """The address of a hub whose models all are `content`."""
    handler = type("Handler", (_Hub,), {"content": content, "listed": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as a download uses."""

    content: Path
    listed: set[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/api/models/").strip("/")
        for model, (status, code) in ERRORS.items():
            repo, _, revision = model.partition("@")
            if path.startswith(repo) and revision in path:
                return self._answer(status, b"{}", {"X-Error-Code": code} if code else {})
        if "/resolve/" in path:
            revision, name = path.split("/resolve/")[1].split("/", 1)
            data, commit = (self.content / name).read_bytes(), COMMIT
            if revision != COMMIT:
                data, commit = b"moved", "b" * 40
            return self._answer(200, data, {"ETag": f'"{abs(hash(data)):x}"', "X-Repo-Commit": commit})
        sizes = {str(p.relative_to(self.content)): p.stat().st_size for p in self.content.rglob("*") if p.is_file()}
        if "/tree/" in path:
            entries = [{"type": "file", "path": n, "size": size, "oid": "0" * 40} for n, size in sizes.items()]
            return self._answer(200, json.dumps(entries).encode(), {})
        moved = path in self.listed and not path.endswith(COMMIT)  # a branch moves on once it has been listed
        self.listed.add(path)
        about = {
            "id": "a/toy",
            "sha": "../../x" if path.startswith("a/vague") else "b" * 40 if moved else COMMIT,
            "siblings": [{"rfilename": name} for name in sizes],
        }
        return self._answer(200, json.dumps(about).encode(), {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests are quiet."""


def ask(hub: str, folder: Path, *models: str) -> list[str]:
    """What a process without a cache gets for `models`: a path, or what went wrong."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLIENT, hub, str(folder / "hub"), *models],
        env=clean | {"HF_HOME": str(folder), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_was_listed_is_downloaded_although_the_branch_moves_on_meanwhile(
    hub: str, plain: Path, tmp_path: Path
) -> None:
    [path, tagged] = ask(hub, tmp_path, "a/toy", "a/toy@v1")
    assert Path(path) == Path(tagged) and Path(path).name == COMMIT
    for name in ("model_index.json", "net/diffusion_pytorch_model.safetensors"):
        assert (Path(path) / name).read_bytes() == (plain / name).read_bytes()
    offline = Hub(tmp_path / "hub", offline=True)
    for revision in (None, "main", "v1", COMMIT):
        assert offline.cached("a/toy", revision) == Path(path), (
            "the name is remembered, and no network is needed for it"
        )


def test_a_hub_that_names_no_commit_is_not_followed(hub: str, tmp_path: Path) -> None:
    [said] = ask(hub, tmp_path, "a/vague")
    assert "'../../x', which is none" in said
    assert not list((tmp_path / "hub").glob("**/snapshots/*"))


def test_a_revision_cannot_lead_out_of_the_cache(places: Places) -> None:
    assert "@a/../../../x" in refusal("someone/Toy-Image@a/../../../x", places)


def test_a_hub_model_is_downloaded_and_every_failure_says_what_to_do(hub: str, tmp_path: Path) -> None:
    models = ["a/toy", *ERRORS, "a/unreachable"]
    path, gated, absent, revision, broken, unreachable = ask(hub, tmp_path, *models)
    assert (Path(path) / "net/diffusion_pytorch_model.safetensors").is_file()
    assert not (Path(path) / "net/pytorch_model.bin").exists()
    assert "a/gated is gated" in gated
    assert "hf auth login" in gated
    assert "a/none does not exist on the hub, or it is private" in absent
    assert "a/toy has no revision 'nope'" in revision
    assert "the hub answered with an error for a/broken" in broken
    assert "a/unreachable is not on this machine and the hub cannot be reached" in unreachable


def test_a_language_model_is_downloaded_listed_and_found_again_without_network(tmp_path: Path) -> None:
    content = tmp_path / "words"
    content.mkdir()
    (content / "config.json").write_text('{"architectures": ["ToyForCausalLM"]}')
    (content / "generation_config.json").write_text('{"max_new_tokens": 3}')
    (content / "tokenizer_config.json").write_text('{"tokenizer_class": "ToyTokenizer"}')
    (content / "model.safetensors").write_bytes(b"weights")
    (content / "onnx").mkdir()
    (content / "onnx/model.safetensors").write_bytes(b"copy")
    with hub_of(content) as address:
        [path] = ask(address, tmp_path, "a/words")
    assert sorted(file.name for file in Path(path).rglob("*")) == sorted(
        ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors"]
    )
    offline = Places(tmp_path / "none", Hub(tmp_path / "hub", offline=True))
    assert resolve("a/words", (), offline) == Folder("a/words", Path(path), "hub")
    assert [folder.id for folder in list_local(offline)] == ["a/words"]
