"""`swintormer web` without a browser: what the page asks for, who may ask, and what is left behind."""

from __future__ import annotations

import io
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from cli_files import default_signals, make_bad, photo
from cli_program import PATIENCE, PROGRAM

from bench.browser import until
from swintormer import Deblurrer, read_checkpoint
from swintormer.errors import SwintormerError
from swintormer.images.picture import wrap
from swintormer.images.reading import read_image
from swintormer.inference.kept import Kept

pytest.importorskip("starlette.testclient")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from swintormer.web import desk as desk_module
from swintormer.web import folder as folders
from swintormer.web import server
from swintormer.web.desk import Desk, Models, Network
from swintormer.web.pictures import plain_name
from swintormer.web.server import make_app

ONE, TWO = "1" * 16, "2" * 16  # windows
OWN = {"x-swintormer": "1"}


# The last bit of a mix depends on the number of threads.
pytestmark = pytest.mark.usefixtures("one_thread_everywhere")


class Page:
    """What the page does, for a window."""

    def __init__(self, desk: Desk, **more: object):
        self.desk = desk
        self.client = TestClient(make_app(desk, **more), "http://127.0.0.1:8321", headers=OWN)

    def add(self, content: bytes, name: str, window: str = ONE, model: str = "tiny") -> str:
        query = {"window": window, "name": name, "model": model}
        answer = self.client.post("/api/pictures", params=query, content=content)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def drop(self, path: Path, **more: str) -> str:
        return self.add(path.read_bytes(), path.name, **more)

    def status(self, window: str = ONE) -> dict[str, dict]:
        answer = self.client.get("/api/pictures", params={"window": window}).json()
        return {picture["id"]: picture for picture in answer["pictures"]}

    def ended(self, name: str, window: str = ONE) -> dict:
        return until(
            lambda: (found := self.status(window)[name])["state"] in ("done", "failed", "stopped") and found, name
        )

    def download(self, name: str, **wanted: object) -> tuple[bytes, dict]:
        answer = self.client.post(f"/api/pictures/{name}/result", json={"model": "tiny", **wanted})
        assert answer.status_code == 200, answer.text
        told = answer.json()
        file = self.client.get(told["url"])
        assert told["name"] in unquote(file.headers["content-disposition"])
        assert file.headers["cache-control"] == "no-store"
        return file.content, told


@pytest.fixture
def models(weights):
    deblurrer = Deblurrer(read_checkpoint(weights))
    networks = {"tiny": Network(deblurrer), "idle": Network(deblurrer, alone=0.0)}
    return Models({"tiny": "for tests", "idle": "finds that every picture needs nothing"}, networks.__getitem__)


@pytest.fixture
def page(models, tmp_path):
    folder = tmp_path / "desk"
    folder.mkdir()
    desk = Desk(folder, models)
    desk.start()
    yield Page(desk)
    desk.stop()


@pytest.fixture
def slow(monkeypatch):
    """Every restoration waits, at its first tile, for a turn of its own."""
    restore, turns, begun = Deblurrer.restore_parts, threading.Semaphore(0), threading.Semaphore(0)

    def waiting(self, pixels, take, right=None, progress=None):
        begun.release()
        while not turns.acquire(timeout=0.02):
            progress(0, 1)
        return restore(self, pixels, take, right, progress)

    monkeypatch.setattr(Deblurrer, "restore_parts", waiting)
    return turns, begun


# Results


def kinds(folder: Path) -> list[Path]:
    """Pictures of several formats, depths and channels, with what a camera adds."""
    paths = [
        photo(folder / "gray.tif", 1, 16),
        photo(folder / "transparent.png", 4, 16),
        photo(folder / "two channels.webp", 4, 8),
    ]
    image = wrap(read_image(photo(folder / "plain.png", side=(60, 45))).samples)
    image.set_type(image.get_typeof("width"), "orientation", 6)
    image.write_to_file(str(folder / "camera.JPG"), Q=88, profile="p3")
    return [*paths, folder / "camera.JPG"]


def test_a_download_is_the_file_of_the_command_line(page, run, tmp_path):
    """Byte for byte, at every strength, for every kind of picture."""
    for path in kinds(tmp_path / "in"):
        name = page.drop(path)
        assert page.ended(name)["state"] == "done"
        for strength in (1.0, 0.63, 0.0):
            run("deblur", path, "-o", "out", "--strength", strength)
            content, told = page.download(name, strength=strength)
            assert content == (tmp_path / "out" / path.name).read_bytes(), (path, strength)
            assert told["name"] == f"{path.stem}_sharp{path.suffix}"


def test_a_download_in_another_format(page, run, tmp_path):
    path = photo(tmp_path / "scan.tif", 3, 16)
    name = page.drop(path)
    page.ended(name)
    run("deblur", path, "-o", "out", "--format", "jpeg")
    content, told = page.download(name, format="jpeg")
    assert content == (tmp_path / "out/scan.jpg").read_bytes()
    assert told["notes"] == ["scan.tif has 16 bits per channel and JPEG holds 8: scan_sharp.jpg has 8."]


def test_a_format_that_cannot_hold_the_picture_is_one_sentence(page, tmp_path):
    name = page.drop(photo(tmp_path / "clear.png", 4))
    page.ended(name)
    answer = page.client.post(f"/api/pictures/{name}/result", json={"model": "tiny", "format": "jpeg"})
    assert answer.status_code == 400
    sentence = "clear.png has transparency, which JPEG cannot hold: choose the format png, tiff or webp."
    assert answer.json() == {"error": sentence}


def test_a_picture_that_needs_nothing_is_left_as_it_came(page, tmp_path):
    path = photo(tmp_path / "sharp.jpg")
    name = page.drop(path, model="idle")
    assert page.ended(name)["results"]["idle"]["needs_nothing"]
    assert page.download(name, model="idle")[0] == path.read_bytes()
    assert page.download(name, model="idle", strength=0.5)[0] == path.read_bytes()
    page.client.post(f"/api/pictures/{name}/restore", json={"model": "tiny"})
    page.ended(name)
    assert page.download(name, model="idle", force=True)[0] == page.download(name)[0] != path.read_bytes()


def test_a_network_restores_a_picture_once(page, tmp_path, monkeypatch):
    """Also when the user goes from one to another and back."""
    calls, restore = [], Deblurrer.restore_parts

    def counted(*arguments, **more):
        calls.append(None)
        return restore(*arguments, **more)

    monkeypatch.setattr(Deblurrer, "restore_parts", counted)
    name = page.drop(photo(tmp_path / "a.png"))
    for model in ("tiny", "idle", "tiny", "idle"):
        page.client.post(f"/api/pictures/{name}/restore", json={"model": model})
        assert page.ended(name)["model"] == model
    assert len(calls) == 2


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint16), (3, np.uint16), (3, np.uint8)])
def test_what_is_kept_gives_every_strength(weights, tmp_path, channels, dtype):
    """The same bits as restoring at that strength. 16 bits show an error of 1e-5 that 8 would hide."""
    full = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, full, (70, 111, channels), dtype, endpoint=True)
    checkpoint, kept = read_checkpoint(weights), Kept(tmp_path / "kept")
    Deblurrer(checkpoint).restore_parts(pixels, kept.take)
    for strength in (0, 0.37, 0.5, 1):
        expected = Deblurrer(checkpoint, strength=strength).restore_array(pixels)
        np.testing.assert_array_equal(kept.samples(pixels, strength), expected)


def test_all_results_in_one_archive(page, tmp_path):
    names = [page.add(photo(tmp_path / f"{n}.png", seed=n).read_bytes(), "same.png") for n in range(2)]
    for name in names:
        page.ended(name)
    asked = [{"id": name, "model": "tiny"} for name in [*names, "closed"]]
    told = page.client.post("/api/zip", json={"pictures": asked}).json()
    assert told["problems"] == ["This picture is closed: drop it again."]
    with zipfile.ZipFile(io.BytesIO(page.client.get(told["url"]).content)) as archive:
        assert archive.namelist() == ["same_sharp.png", "same_sharp (2).png"]
        assert [archive.read(entry) for entry in archive.namelist()] == [page.download(name)[0] for name in names]
    assert not list(page.desk.folder.glob("*.zip"))


# What is shown


def test_tiles_are_the_picture_upright(page, tmp_path):
    """Their edges fit, and the coarsest level is one tile."""
    pixels = np.random.default_rng(0).integers(0, 255, (530, 1100, 3), np.uint8)
    image = wrap(pixels)
    image.set_type(image.get_typeof("width"), "orientation", 3)
    image.write_to_file(str(tmp_path / "turned.png"))
    name = page.drop(tmp_path / "turned.png")
    shown = until(lambda: page.status()[name]["shown"], "preview")
    assert shown == {"width": 1100, "height": 530, "levels": 3, "tile": 512, "transparent": False}

    def tile(level: int, column: int, row: int) -> np.ndarray:
        (tmp_path / "tile.png").write_bytes(
            page.client.get(f"/api/pictures/{name}/tiles/before/{level}/{column}/{row}").content
        )
        return read_image(tmp_path / "tile.png").samples

    rows = [np.concatenate([tile(0, column, row) for column in range(3)], axis=1) for row in range(2)]
    np.testing.assert_array_equal(np.concatenate(rows), pixels[::-1, ::-1])
    assert tile(2, 0, 0).shape == (133, 275, 3)
    (tmp_path / "thumb.png").write_bytes(page.client.get(f"/api/pictures/{name}/thumb").content)
    assert read_image(tmp_path / "thumb.png").samples.shape == (128, 265, 3)
    for place in ("before/0/3/0", "before/3/0/0", "before/0/0/-1", "tiny/9/0/0", "other/0/0/0"):
        assert page.client.get(f"/api/pictures/{name}/tiles/{place}").status_code in (400, 404)


def test_a_large_profile_is_not_sent_with_every_tile(page, tmp_path, monkeypatch):
    from swintormer.web import previews

    monkeypatch.setattr(previews, "_LARGEST_PROFILE", 10)
    wrap(read_image(photo(tmp_path / "plain.png")).samples).write_to_file(str(tmp_path / "p3.png"), profile="p3")
    name = page.drop(tmp_path / "p3.png")
    until(lambda: page.status()[name]["shown"], "preview")
    tile = page.client.get(f"/api/pictures/{name}/tiles/before/0/0/0").content
    assert b"iCCP" not in tile
    assert b"iCCP" in (tmp_path / "p3.png").read_bytes()


# Files that are no pictures, and too much


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "cmyk", "float"])
def test_a_file_that_cannot_be_restored_is_one_sentence(page, tmp_path, monkeypatch, kind):
    """With the name that the user knows and no folder of ours; the next picture is restored."""
    monkeypatch.chdir(tmp_path)
    path = make_bad(kind)
    bad, good = page.drop(path), page.drop(photo(tmp_path / "good.png"))
    found = page.ended(bad)
    assert found["state"] == "failed"
    assert found["error"].startswith(f"{path.name} ")
    assert found["error"].count(". ") == 0
    assert str(tmp_path) not in found["error"]
    assert bad not in found["error"]
    assert page.ended(good)["state"] == "done"


def test_a_name_is_only_a_name(page, tmp_path):
    name = page.add(photo(tmp_path / "a.png").read_bytes(), "../../etc/<b>\x1b[1m\n.png")
    found = page.ended(name)
    assert found["name"] == "<b>\\x1b[1m .png"
    assert found["state"] == "done"
    assert page.download(name)[1]["name"] == "<b>\\x1b[1m _sharp.png"
    assert plain_name("C:\\photos\\a.png") == "a.png"
    assert plain_name("..") == "picture"
    assert plain_name("x" * 300 + ".jpeg").endswith("x.jpeg")
    assert len(plain_name("x" * 300 + ".jpeg")) == 120


def test_a_picture_of_too_many_pixels(models, tmp_path):
    desk = Desk(tmp_path, models, max_pixels=100)
    desk.start()
    page = Page(desk)
    name = page.add(photo(tmp_path / "large.png").read_bytes(), "large.png")
    assert page.ended(name)["error"].startswith("large.png has 50x40 = 2,000 pixels, and more than 100 are not")
    desk.stop()


def test_a_file_of_too_many_bytes_is_not_kept(page, monkeypatch):
    """Whether or not its length is told beforehand."""
    monkeypatch.setattr(server, "_HEADER_BYTES", 1000)
    page.desk.max_pixels = 1
    small = Page(page.desk)
    query = {"window": ONE, "name": "huge.png", "model": "tiny"}
    for content in (b"x" * 2000, iter([b"x" * 600, b"x" * 600])):
        answer = small.client.post("/api/pictures", params=query, content=content)
        assert answer.status_code == 413
        assert answer.json()["error"].startswith("huge.png has ")
    assert not list(page.desk.folder.iterdir())
    assert not small.status()


def test_a_full_disk_is_one_sentence(page, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=server.SPARE + 5000))
    query = {"window": ONE, "name": "a.png", "model": "tiny"}
    answer = page.client.post("/api/pictures", params=query, content=b"x" * 6000)
    assert answer.status_code == 507
    assert "are free in the temporary folder" in answer.json()["error"]
    assert not list(page.desk.folder.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=server.SPARE + 5_000_000))
    name = page.drop(photo(tmp_path / "a.png"))
    page.ended(name)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=server.SPARE + 100))
    with pytest.raises(SwintormerError, match=r"needs 46\.9 KiB in the temporary folder, and 0\.1 KiB are free"):
        page.desk._check_room(read_image(tmp_path / "a.png"))


def test_an_error_of_the_program_ends_the_work_on_one_picture(page, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Deblurrer, "restore_parts", lambda *_, **__: 1 / 0)
        first = page.ended(page.drop(photo(tmp_path / "a.png")))
        patch.setattr(Deblurrer, "restore_parts", lambda *_, **__: [].__getitem__(2**62))
    assert first["error"].startswith("a.png failed because of an error in the program (ZeroDivisionError: division")
    assert page.ended(page.drop(photo(tmp_path / "b.png")))["state"] == "done"


# The queue


def test_two_windows_share_the_queue_and_not_the_pictures(page, tmp_path, slow):
    turns, begun = slow
    path = photo(tmp_path / "a.png")
    first, second, third = page.drop(path), page.drop(path, window=TWO), page.drop(path)
    begun.acquire()
    until(lambda: page.status()[third]["state"] == "waiting", "opening")
    assert set(page.status()) == {first, third}
    assert set(page.status(TWO)) == {second}
    assert page.status()[first]["state"] == "restoring"
    assert [page.status(TWO)[second]["position"], page.status()[third]["position"]] == [2, 3]
    turns.release(3)
    assert {page.ended(first)["state"], page.ended(second, TWO)["state"], page.ended(third)["state"]} == {"done"}


def test_stopping_and_going_on(page, tmp_path, slow):
    turns, begun = slow
    first, second = page.drop(photo(tmp_path / "a.png")), page.drop(photo(tmp_path / "b.png"))
    begun.acquire()
    until(lambda: page.status()[second]["state"] == "waiting", "opening")
    for name in (second, first):
        page.client.post(f"/api/pictures/{name}/cancel")
        assert page.ended(name)["state"] == "stopped"
    assert not list(page.desk.folder.glob("*/*.f32"))
    turns.release()
    page.client.post(f"/api/pictures/{first}/restore", json={"model": "tiny"})
    assert page.ended(first)["state"] == "done"
    assert page.status()[second]["state"] == "stopped"


def test_another_model_while_a_picture_is_restored(page, tmp_path, slow):
    turns, begun = slow
    name = page.drop(photo(tmp_path / "a.png"))
    begun.acquire()
    page.client.post(f"/api/pictures/{name}/restore", json={"model": "idle"})
    begun.acquire()  # again, with the other one
    turns.release()
    assert set(page.ended(name)["results"]) == {"idle"}
    answer = page.client.post(f"/api/pictures/{name}/restore", json={"model": "none"})
    assert answer.json()["error"].startswith("There is no model 'none': choose one of tiny, idle")


# What is left behind


def test_closing_a_picture_removes_its_files(page, tmp_path, slow):
    """Also of one that is being restored, and of one that is being received."""
    turns, begun = slow
    turns.release()
    done = page.drop(photo(tmp_path / "a.png"))
    page.ended(done)
    begun.acquire()
    restored = page.drop(photo(tmp_path / "b.png"))
    begun.acquire()
    for name in (done, restored):
        assert page.client.delete(f"/api/pictures/{name}").status_code == 200
    until(lambda: not list(page.desk.folder.iterdir()), "removal")
    assert not page.status()
    answer = page.client.get(f"/api/pictures/{done}/tiles/before/0/0/0")
    assert answer.json() == {"error": "This picture is closed: drop it again."}


def test_a_window_that_is_gone_takes_its_pictures_with_it(page, tmp_path, monkeypatch):
    old, new = page.drop(photo(tmp_path / "a.png")), page.drop(photo(tmp_path / "b.png"), window=TWO)
    page.ended(old)
    page.ended(new, TWO)
    for window in (ONE, TWO):
        page.client.post(f"/api/leave?window={window}")
    page.status(TWO)  # it was only loaded again
    page.desk._forget_windows()
    assert {path.name for path in page.desk.folder.iterdir()} == {old, new}
    monkeypatch.setattr(desk_module, "PATIENCE", -1.0)
    page.desk._forget_windows()
    assert {path.name for path in page.desk.folder.iterdir()} == {new}


def test_the_folder_is_private_and_does_not_stay(tmp_path, monkeypatch):
    """Not even that of a process that was killed: the next one removes it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(folders, "_AGE", -1.0)
    killed = tmp_path / "swintormer-web-killed"
    killed.mkdir()
    (killed / "in-use").touch()
    with folders.private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not killed.exists()
        with folders.private_folder() as other:
            assert folder.exists()
            (other / "picture").touch()
        assert not other.exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [signal.SIGINT, "page"])
def test_the_program_from_start_to_end(tmp_path, monkeypatch, weights, one_program, way):
    """It tells its address, and leaves nothing: after a signal with a picture at hand, and when the page ends it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    picture = photo(tmp_path / "in/a.png", side=(400, 400)).read_bytes()
    command = [*PROGRAM, "web", "--port", "0", "--no-browser", "--token", "--weights", str(weights)]
    with default_signals():
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = program.stdout.readline()
        base, token = re.fullmatch(r"The page is at (http://127\.0\.0\.1:\d+/)\?token=(\S+)\n", line).groups()
        headers = {**OWN, "cookie": f"swintormer-{base.split(':')[2].rstrip('/')}={token}"}

        def ask(path: str, data: bytes = b"") -> None:
            request = urllib.request.Request(base + path, data, headers, method="POST")
            urllib.request.urlopen(request, timeout=PATIENCE).close()

        ask(f"api/pictures?window={ONE}&name=a.png&model=own", picture)
        half(base, headers)
        assert [path.name[:15] for path in tmp_path.glob("swintormer*")] == ["swintormer-web-"]
        if way == "page":
            ask("api/quit")
        else:
            program.send_signal(way)
        _, errors = program.communicate(timeout=PATIENCE)
    finally:
        program.kill()
    assert (program.returncode, errors) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def half(base: str, headers: dict[str, str]) -> None:
    """Begin to send a picture, and break off."""
    host, port = base.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as connection:
        lines = [f"POST /api/pictures?window={ONE}&name=b.png&model=own HTTP/1.1", f"host: {host}:{port}"]
        lines += [f"{name}: {value}" for name, value in {**headers, "content-length": "1000"}.items()]
        connection.sendall("\r\n".join([*lines, "", "x"]).encode())


# Who may ask


def refused(page: Page, method: str = "GET", path: str = f"/api/pictures?window={ONE}", **headers: str | None) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    client = TestClient(page.client.app, "http://127.0.0.1:8321", headers=names)
    return client.request(method, path).status_code


def test_other_sites_may_not_ask(page):
    assert refused(page) == 200
    assert refused(page, host="localhost:8321") == 200
    assert refused(page, host="[::1]:8321") == 200
    for host in ("evil.example", "evil.example:8321", "127.0.0.1.evil.example", "192.168.0.7", "0.0.0.0", "", "["):
        assert refused(page, host=host) == 400, host  # a name that was rebound to this machine
    assert refused(page, origin="http://127.0.0.1:8321") == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "https://127.0.0.1:8321"):
        assert refused(page, origin=origin) == 403, origin
    for site in ("cross-site", "same-site"):
        assert refused(page, sec_fetch_site=site) == 403
        assert refused(page, path="/", sec_fetch_site=site) == 200  # a link to the page
    for method, path in (("POST", "/api/quit"), ("DELETE", "/api/pictures/x"), ("POST", f"/api/pictures?window={ONE}")):
        assert refused(page, method, path) == 403  # a form of another site cannot have our header


def test_what_is_not_loopback_needs_the_token(page):
    open_page = Page(page.desk, host="0.0.0.0", token="secret")
    client = open_page.client
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    assert client.get("/static/app.js").status_code == 403
    assert client.get("/api/program", headers={"cookie": "swintormer-8321=wrong"}).status_code == 403
    assert client.get(f"/api/pictures?window={ONE}&token=secret").status_code == 403  # only the page takes it
    entrance = client.get("/?token=secret", follow_redirects=False)
    assert (entrance.status_code, entrance.headers["location"]) == (303, "/")  # not in the history
    assert "httponly" in entrance.headers["set-cookie"].lower()
    assert "samesite=strict" in entrance.headers["set-cookie"].lower()
    assert client.get("/api/program").status_code == 200
    for host in ("192.168.0.7:8321", f"{socket.gethostname()}:8321"):
        assert client.get("/", headers={"host": host, "cookie": "swintormer-8321=secret"}).status_code == 200
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    with pytest.raises(SwintormerError, match="needs a token"):
        server.serve(page.desk.models, socket.socket(), "0.0.0.0", "", 1, print)


def test_every_answer_keeps_others_out(page):
    for path in ("/", "/static/app.js", "/api/program", "/nothing"):
        headers = page.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_names_no_other_site():
    for path in server.STATIC.iterdir():
        found = set(re.findall(r"(?:https?:)?//[\w.]+\.[a-z]+[\w./]*", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path


def test_requests_that_make_no_sense(page, tmp_path):
    name = page.drop(photo(tmp_path / "a.png"))
    page.ended(name)
    ask = page.client.post
    assert page.client.get("/api/pictures").status_code == 400
    assert ask(f"/api/pictures?window={ONE}&name=a.png&model=none", content=b"x").status_code == 400
    for body in (b"", b"[]", b"{", b'"x"'):
        assert ask(f"/api/pictures/{name}/result", content=body).status_code == 400
    for wanted in ({"strength": 2}, {"strength": "x"}, {"strength": None}, {"format": "gif"}, {"format": ["png"]}):
        assert ask(f"/api/pictures/{name}/result", json={"model": "tiny", **wanted}).status_code == 400
    assert (
        ask(f"/api/pictures/{name}/result", json={"model": "idle"}).json()["error"].startswith("a.png is not restored")
    )
    assert ask("/api/zip", json={"pictures": [1, {}]}).status_code == 400
    assert ask("/api/zip", json={"pictures": "x"}).status_code == 400
    for path in (
        "/api/zip/..%2Fx",
        f"/api/pictures/{name}/result/tif",
        f"/api/pictures/{name}/result/..%2Fx",
    ):
        assert page.client.get(path).status_code == 404
    assert page.client.get("/static/..%2fserver.py").status_code == 404
    assert not list(page.desk.folder.glob("*.zip"))


def test_a_port_that_is_taken():
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SwintormerError, match=f"Cannot listen at 127.0.0.1, port {port}: .*; choose another --port"
        ):
            server.listen("127.0.0.1", port)
        with server.listen("127.0.0.1", port, others=9) as other:
            assert other.getsockname()[1] > port
            assert server.address(other, "").endswith(f":{other.getsockname()[1]}/")
    with pytest.raises(SwintormerError, match="Cannot listen at no such name"):
        server.listen("no such name", 0)


def test_the_packages_are_named_where_they_are_missing(run, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("swintormer.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    for name in [name for name in sys.modules if name.startswith("starlette.")]:
        monkeypatch.delitem(sys.modules, name)
    found = run("web", code=1).output
    assert "The page needs the package starlette: pip install 'swintormer-kernels[web]'." in found
