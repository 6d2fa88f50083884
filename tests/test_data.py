"""Data files: where they are looked for, what a wrong one says, formats, downloads from a server that misbehaves."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from grokscale import data
from grokscale.cli import app
from grokscale.data import DataFile, Dataset
from grokscale.errors import GrokscaleError, InputError
from grokscale.fetch import ATTEMPTS, fetch
from grokscale.tasks import TASKS
from tests import datafiles
from tests.test_cli import GROKSCALE, environment

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(200_000)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


SET = Dataset(
    "letters", (DataFile("a.bin", sha(CONTENT), len(CONTENT)), DataFile("b.bin", sha(OTHER), len(OTHER))), "nobody's"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.delenv("GROKSCALE_DATA_URL", raising=False)
    data.use(tmp_path / "data")
    return tmp_path / "data"


def put_both(folder: Path, sums: bool = False) -> Path:
    return datafiles.put(folder, "letters", {"a.bin": CONTENT, "b.bin": OTHER}, sums=sums)


# ---------------------------------------------------------------------------------------------- where


def test_a_named_folder_wins_over_the_environment_and_that_over_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data.use(None)
    assert data.folder() == tmp_path / "cache" / "grokscale"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.folder() == tmp_path / ".cache" / "grokscale"
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "env"))
    assert data.folder() == tmp_path / "env"
    monkeypatch.chdir(tmp_path)
    data.use("named")
    assert data.folder() == tmp_path / "named", "absolute: workers may run elsewhere"


# ---------------------------------------------------------------------------------------------- right or wrong


def test_right_files_are_found_and_fingerprinted_by_their_content(folder: Path, tmp_path: Path) -> None:
    place = put_both(folder)
    assert data.find(SET) == {"a.bin": place / "a.bin", "b.bin": place / "b.bin"}
    print_ = data.fingerprint(SET)
    assert re.fullmatch(r"published-[0-9a-f]{16}", print_)
    data.use(tmp_path / "elsewhere")
    put_both(tmp_path / "elsewhere")
    assert data.fingerprint(SET) == print_, "where the files lie is no part of it"


def test_missing_and_corrupt_files_are_all_named_with_sums_and_remedy(folder: Path) -> None:
    place = put_both(folder)
    (place / "a.bin").unlink()
    flipped = bytes([OTHER[0] ^ 1]) + OTHER[1:]
    (place / "b.bin").write_bytes(flipped)
    with pytest.raises(InputError) as caught:
        data.find(SET)
    missing, corrupt, remedy = caught.value.problems
    assert missing == f"{place / 'a.bin'}: is missing; expected sha256 {sha(CONTENT)} (300,000 bytes)"
    assert corrupt.startswith(f"{place / 'b.bin'}: is corrupt; expected sha256 {sha(OTHER)} (200,000 bytes), found ")
    assert sha(flipped) in corrupt
    assert f"grokscale data fetch letters --data {folder} --from URL" in remedy
    assert caught.value.exit_code == 2


def test_a_file_that_is_changed_after_it_was_checked_is_noticed(folder: Path) -> None:
    place = put_both(folder)
    data.find(SET)
    (place / "a.bin").write_bytes(CONTENT + b"!")
    with pytest.raises(InputError, match=r"a\.bin: is corrupt"):
        data.find(SET)


def test_files_of_ones_own_take_their_own_sums_and_say_so(folder: Path) -> None:
    place = datafiles.put(folder, "letters", {"a.bin": b"mine", "b.bin": b"also mine"})
    assert data.fingerprint(SET).startswith("own-")
    assert data.expected(SET)[0][0] == DataFile("a.bin", sha(b"mine"), None)
    (place / "a.bin").write_bytes(b"changed")
    with pytest.raises(InputError, match="is corrupt"):
        data.find(SET)
    (place / "SHA256SUMS").write_text(f"{sha(b'mine')}  a.bin\n")
    with pytest.raises(InputError, match=r"has no sha256 of b\.bin.*sha256sum \* > SHA256SUMS"):
        data.find(SET)
    put_both(folder, sums=True)
    assert data.fingerprint(SET).startswith("published-"), "the sums of the published files are theirs"


def test_sums_are_read_as_sha256sum_writes_them(folder: Path) -> None:
    place = datafiles.put(folder, "letters", {"a.bin": b"mine", "b.bin": b"also mine"})
    subprocess.run("sha256sum -b * > SUMS && mv SUMS SHA256SUMS", shell=True, cwd=place, check=True)
    assert data.fingerprint(SET).startswith("own-")


def test_a_library_that_is_not_there_is_named_with_its_extra() -> None:
    with pytest.raises(InputError, match=r"task imdb: needs nosuchlib.*pip install 'grokscale\[data\]'"):
        data.need("nosuchlib", "imdb")
    data.need("numpy", "imdb")


@pytest.mark.parametrize(("task", "module"), [("imdb", "sklearn"), ("qm9", "rdkit")])
def test_a_task_says_so_before_anything_runs(task: str, module: str, folder: Path) -> None:
    datafiles.write_all(folder)
    code = f"""
import sys
sys.modules[{module!r}] = None
from grokscale.tasks import TASKS
from grokscale.errors import InputError
try:
    TASKS[{task!r}].data(**TASKS[{task!r}].defaults)
except InputError as error:
    assert {module!r} in str(error) and "grokscale[data]" in str(error), error
else:
    raise AssertionError("nothing was raised")
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment(), data.VARIABLE: str(folder)})


@pytest.mark.parametrize("name", ["mnist", "imdb", "qm9"])
def test_the_real_files_have_the_sums_that_are_written_down(name: str) -> None:
    data.use(datafiles.real(name))
    dataset = TASKS[name].dataset
    assert dataset is not None
    assert [path.stat().st_size for path in data.find(dataset).values()] == [file.size for file in dataset.files]
    assert data.fingerprint(dataset).startswith("published-")


# ---------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("shape", [(0, 2, 2), (5,), (3, 4, 4), (2, 3, 1, 2)])
def test_idx_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    (tmp_path / "x.gz").write_bytes(datafiles.idx(array))
    read = data.read_idx(tmp_path / "x.gz")
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)


def packed(content: bytes) -> bytes:
    """Gzipped, the same bytes at any time: they name the test."""
    return gzip.compress(content, mtime=0)


GOOD_IDX = gzip.decompress(datafiles.idx(np.zeros((2, 3), np.uint8)))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no gzip", packed(b""), packed(b"\0\0\x08"), packed(GOOD_IDX[:-1]),
        packed(GOOD_IDX + b"\0"), packed(b"\0\0\x0d" + GOOD_IDX[3:]), packed(b"\1" + GOOD_IDX[1:]),
        packed(GOOD_IDX)[:-12], packed(b"\0\0\x08\0"),
    ],
)  # fmt: skip
def test_what_is_no_idx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.gz: is no .*IDX file"):
        data.read_idx(tmp_path / "x.gz")


def test_csv_keeps_quotes_commas_and_line_ends(tmp_path: Path) -> None:
    rows = [['a "b", c\nd', "0"], ["e", "1"], ["é", "0"]]
    (tmp_path / "t.gz").write_bytes(datafiles.table(["text", "n"], rows))
    assert data.read_csv(tmp_path / "t.gz", ("n", "text")) == [(n, text) for text, n in rows]
    assert data.read_csv(tmp_path / "t.gz", ("text",), 2) == [(text,) for text, _ in rows[:2]]
    with pytest.raises(InputError, match=r"has no column colour; it has: text, n"):
        data.read_csv(tmp_path / "t.gz", ("colour",))


@pytest.mark.parametrize("content", [b"x", packed(b"a,b\n1\n"), packed(b"a,b\n\xff\xfe,2\n")])
def test_what_is_no_csv_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.gz: is no gzipped CSV file"):
        data.read_csv(tmp_path / "t.gz", ("a", "b"))


# ---------------------------------------------------------------------------------------------- fetch


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` by path, with ranges unless told otherwise; `cuts` are bytes after which it hangs up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = {"/letters/a.bin": CONTENT, "/letters/b.bin": OTHER}
        self.cuts: list[int] = []
        self.errors: list[int] = []
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.path, asked))
        content = server.content.get(self.path)
        if content is None or server.errors:
            self.send_error(server.errors.pop(0) if server.errors else 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(content)
        self.wfile.write(content[start : start + cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetch_brings_what_is_missing_and_only_that(folder: Path, server: Server) -> None:
    said: list[str] = []
    fetch(SET, server.url + "/", said.append)
    assert [path.read_bytes() for path in data.find(SET).values()] == [CONTENT, OTHER]
    assert sorted(os.listdir(folder / "letters")) == ["a.bin", "b.bin"], "nothing else is left"
    assert "300,000 bytes" in said[0]
    (folder / "letters" / "b.bin").write_bytes(b"corrupt")
    server.asked.clear()
    fetch(SET, server.url)
    assert server.asked == [("/letters/b.bin", None)]
    data.find(SET)


def test_a_cut_connection_is_resumed_where_it_was_cut(folder: Path, server: Server) -> None:
    server.cuts = [100_000, 50_000]
    fetch(SET, server.url)
    assert server.asked[:3] == [("/letters/a.bin", r) for r in (None, "bytes=100000-", "bytes=150000-")]
    data.find(SET)


def test_a_server_without_ranges_sends_all_again(folder: Path, server: Server) -> None:
    server.cuts, server.ranges = [100_000], False
    fetch(SET, server.url)
    data.find(SET)


def test_what_a_killed_fetch_left_is_continued_by_the_next(folder: Path, server: Server) -> None:
    server.cuts = [10_000] * ATTEMPTS
    with pytest.raises(GrokscaleError, match=r"50,000 bytes are kept, the same command goes on from there"):
        fetch(SET, server.url)
    assert not (folder / "letters" / "a.bin").exists(), "what is not whole is not in place"
    server.asked.clear()
    fetch(SET, server.url)
    assert server.asked[0] == ("/letters/a.bin", "bytes=50000-")
    data.find(SET)


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more", OTHER[:1000]])
def test_a_part_that_is_whole_too_long_or_of_something_else(folder: Path, server: Server, left: bytes) -> None:
    part = folder / "letters" / "a.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    fetch(SET, server.url)
    data.find(SET)
    assert not part.exists()


def test_wrong_content_is_not_kept(folder: Path, server: Server) -> None:
    put_both(folder)
    (folder / "letters" / "a.bin").write_bytes(b"the old one")
    server.content["/letters/a.bin"] = CONTENT[:-1] + b"?"
    with pytest.raises(GrokscaleError) as caught:
        fetch(SET, server.url)
    text = str(caught.value)
    assert sha(CONTENT) in text and sha(CONTENT[:-1] + b"?") in text and "was not kept" in text
    assert (folder / "letters" / "a.bin").read_bytes() == b"the old one"
    assert not (folder / "letters" / "a.bin.part").exists()


def test_a_server_that_fails_and_recovers(folder: Path, server: Server) -> None:
    server.errors = [503, 502]
    fetch(SET, server.url)
    data.find(SET)


@pytest.mark.parametrize(("errors", "said", "asked"), [([404], "404", 1), ([503] * ATTEMPTS, "503", ATTEMPTS)])
def test_a_server_that_refuses(folder: Path, server: Server, errors: list[int], said: str, asked: int) -> None:
    server.errors = errors
    with pytest.raises(GrokscaleError, match=rf"/letters/a\.bin: {said} "):
        fetch(SET, server.url)
    assert len(server.asked) == asked


def test_places_that_are_none(folder: Path, server: Server) -> None:
    with pytest.raises(InputError, match=r"no public place holds these files.*--from URL or GROKSCALE_DATA_URL"):
        fetch(SET)
    with pytest.raises(InputError, match=r"must be an http:// or https:// URL"):
        fetch(SET, "ftp://somewhere")
    with Server() as gone:
        url = gone.url
    with pytest.raises(GrokscaleError, match="refused"):
        fetch(SET, url)
    (folder.parent / "file").write_text("")
    data.use(folder.parent / "file")
    with pytest.raises(GrokscaleError, match=r"cannot be (written|read)"):
        fetch(SET, server.url)


def test_two_fetches_do_not_write_one_file(folder: Path, server: Server) -> None:
    import fcntl

    part = folder / "letters" / "a.bin.part"
    part.parent.mkdir(parents=True)
    with part.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(GrokscaleError, match="another fetch is writing it"):
            fetch(SET, server.url)


# ---------------------------------------------------------------------------------------------- the verbs


def test_fetch_and_list_from_the_command_line(tmp_path: Path, server: Server) -> None:
    shelf = datafiles.write_mnist(tmp_path / "there")
    server.content = {f"/mnist/{name}": (shelf / name).read_bytes() for name in datafiles.MNIST}
    here = tmp_path / "here"
    (here / "mnist").mkdir(parents=True)
    (here / "mnist" / "SHA256SUMS").write_bytes((shelf / "SHA256SUMS").read_bytes())
    words = [*GROKSCALE, "data", "fetch", "mnist", "--data", str(here)]
    env = {**environment(), "GROKSCALE_DATA_URL": server.url}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" bytes from ") == 4
    again = CliRunner().invoke(app, ["data", "fetch", "mnist", "--data", str(here), "--from", server.url])
    assert again.output.count("is there") == 4
    listed = CliRunner().invoke(app, ["data", "list"], env={data.VARIABLE: str(here)}).output
    assert listed.count("is right") == 4
    assert "your own files" in listed
    assert f"{here}/imdb/{datafiles.IMDB}: is missing" in listed


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["data", "fetch", "mnits"])
    assert result.exit_code == 2
    assert "did you mean 'mnist'" in result.output
    assert "no task 'parity' reads files" in CliRunner().invoke(app, ["data", "fetch", "parity"]).output


def test_published_files_that_have_no_public_place_ask_for_one() -> None:
    for name in ("imdb", "qm9"):
        result = CliRunner().invoke(app, ["data", "fetch", name])
        assert result.exit_code == 2
        assert "--from URL" in result.output


def test_everything_below_the_engine_is_without_network() -> None:
    code = """
import sys
from grokscale import registry, train
registry.load()
import grokscale.data
text = open(grokscale.data.__file__).read()
assert "grokscale.fetch" not in sys.modules
assert not any(f"import {m}" in text for m in ("urllib", "http", "socket", "pickle"))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
