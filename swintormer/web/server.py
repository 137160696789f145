"""The server of the page: routes, and the program around them from its start to a clean end."""

from __future__ import annotations

import secrets
import shutil
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from swintormer.errors import SwintormerError
from swintormer.images.files import reason
from swintormer.images.formats import FORMATS
from swintormer.inference.memory import binary
from swintormer.signals import stoppable
from swintormer.web.desk import SPARE, Desk, Models, Wanted
from swintormer.web.folder import private_folder
from swintormer.web.guard import Guard, is_loopback
from swintormer.web.pictures import Picture, plain_name
from swintormer.web.previews import Levels

STATIC = Path(__file__).parent / "static"
SAMPLE = Path(__file__).parents[1] / "assets" / "demo.png"
_BYTES_A_PIXEL = 8  # RGB with alpha of 16 bits, not compressed
_HEADER_BYTES = 64 * 2**20  # of metadata


class _Refused(Exception):
    """The body of an upload that is not taken, as a sentence and a status."""


def make_app(desk: Desk, host: str = "127.0.0.1", token: str = "", leave: Callable[[], None] = lambda: None) -> Any:
    """The ASGI application.

    Args:
        host: address that will be listened at; see `Guard`.
        leave: ends the program.
    """
    api = _Api(desk, leave)
    routes = [
        Route("/", api.index),
        Route("/api/program", api.program),
        Route("/api/sample", api.sample),
        Route("/api/pictures", api.status),
        Route("/api/pictures", api.add, methods=["POST"]),
        Route("/api/pictures/{id}", api.close, methods=["DELETE"]),
        Route("/api/pictures/{id}/restore", api.restore, methods=["POST"]),
        Route("/api/pictures/{id}/cancel", api.cancel, methods=["POST"]),
        Route("/api/pictures/{id}/result", api.prepare, methods=["POST"]),
        Route("/api/pictures/{id}/result/{ending}", api.result),
        Route("/api/pictures/{id}/thumb", api.thumb),
        Route("/api/pictures/{id}/tiles/{which}/{level:int}/{column:int}/{row:int}", api.tile),
        Route("/api/leave", api.left, methods=["POST"]),
        Route("/api/zip", api.pack, methods=["POST"]),
        Route("/api/zip/{name}", api.packed),
        Route("/api/quit", api.quit, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    handlers: Any = {SwintormerError: _told, HTTPException: _http}
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, host=host, token=token)])


async def _told(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


class _Api:
    """What the page asks for."""

    def __init__(self, desk: Desk, leave: Callable[[], None]) -> None:
        self.desk, self.leave = desk, leave
        self.limit = desk.max_pixels * _BYTES_A_PIXEL + _HEADER_BYTES

    async def index(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def program(self, _: Request) -> Response:
        """What does not change while the program runs."""
        models = [{"name": name, "purpose": purpose} for name, purpose in self.desk.models.purposes.items()]
        formats = [{"name": name, "title": form.name} for name, form in FORMATS.items()]
        return JSONResponse({"models": models, "formats": formats, "limit": self.limit})

    async def sample(self, _: Request) -> Response:
        """A photograph for those who have none at hand."""
        return FileResponse(SAMPLE)

    async def status(self, request: Request) -> Response:
        return JSONResponse(self.desk.status(_window(request)))

    async def add(self, request: Request) -> Response:
        """A picture; the body is the file. Written as it comes, and removed if it does not come to its end."""
        query = request.query_params
        picture = self.desk.add(_window(request), plain_name(query.get("name", "")), query.get("model", ""))
        try:
            with self.desk.using(picture):
                await self._receive(request, picture)
        except BaseException:
            self.desk.close(picture)
            raise
        self.desk.received(picture)
        return JSONResponse({"id": picture.id})

    async def _receive(self, request: Request, picture: Picture) -> None:
        length, free = int(request.headers.get("content-length", 0)), shutil.disk_usage(picture.folder).free - SPARE
        if length > min(self.limit, free):
            self._refuse(picture, length, free)
        taken = 0
        with picture.source.open("wb") as file:
            try:
                async for chunk in request.stream():
                    taken += len(chunk)
                    if taken > self.limit or shutil.disk_usage(picture.folder).free < SPARE:
                        self._refuse(picture, taken, free)
                    await run_in_threadpool(file.write, chunk)
            except ClientDisconnect as error:
                raise SwintormerError(f"{picture.name} has not come to its end.") from error
            except OSError as error:
                raise SwintormerError(f"Cannot keep {picture.name}: {reason(error)}.") from error

    def _refuse(self, picture: Picture, size: int, free: int) -> None:
        if size > self.limit:
            raise HTTPException(
                413,
                f"{picture.name} has {binary(size)}, and a picture of {self.desk.max_pixels:,} pixels has at most "
                f"{binary(self.limit)}: if it is meant to be that large, raise --max-pixels.",
            )
        raise HTTPException(
            507,
            f"{picture.name} has {binary(size)}, and {binary(max(free, 0))} are free in the temporary folder: close "
            "other pictures, or set TMPDIR to a folder on a larger disk.",
        )

    async def close(self, request: Request) -> Response:
        await run_in_threadpool(self.desk.close, self._picture(request))
        return JSONResponse({})

    async def restore(self, request: Request) -> Response:
        self.desk.restore(self._picture(request), str((await _json(request)).get("model", "")))
        return JSONResponse({})

    async def cancel(self, request: Request) -> Response:
        self.desk.cancel(self._picture(request))
        return JSONResponse({})

    async def tile(self, request: Request) -> Response:
        picture, part = self._picture(request), request.path_params
        levels = picture.before
        if part["which"] != "before":
            result = picture.results.get(part["which"])
            levels = None if result is None else result.levels
        return await self._shown(picture, levels, lambda it: it.tile(part["level"], part["column"], part["row"]))

    async def thumb(self, request: Request) -> Response:
        picture = self._picture(request)
        return await self._shown(picture, picture.before, Levels.thumb)

    async def _shown(self, picture: Picture, levels: Levels | None, part: Callable[[Levels], bytes]) -> Response:
        if levels is None:
            raise HTTPException(404, "There is nothing to show yet.")

        def read() -> bytes:
            with self.desk.using(picture):
                return part(levels)

        return Response(await run_in_threadpool(read), media_type="image/png")

    async def prepare(self, request: Request) -> Response:
        """Write a result; the answer says where it can be fetched, and what the program notes of it."""
        picture, wanted = self._picture(request), _wanted(await _json(request))
        path, name, notes = await run_in_threadpool(self.desk.write, picture, wanted)
        url = f"/api/pictures/{picture.id}/result/{path.suffix[1:]}"
        return JSONResponse({"url": url, "name": name, "bytes": path.stat().st_size, "notes": notes})

    async def result(self, request: Request) -> Response:
        path, name = self._picture(request).result(f".{Path(request.path_params['ending']).name}")
        if not path.is_file():
            raise HTTPException(404, "There is no such result.")
        return FileResponse(path, filename=name)

    async def pack(self, request: Request) -> Response:
        """Write several results into one archive; pictures that fail are named, and the others are in it."""
        asked = (await _json(request)).get("pictures")
        if not isinstance(asked, list) or not all(isinstance(entry, dict) for entry in asked):
            raise HTTPException(400, "The request names no pictures.")
        name, problems = await run_in_threadpool(self._pack, [(str(one.get("id")), _wanted(one)) for one in asked])
        return JSONResponse({"url": f"/api/zip/{name}", "name": "swintormer.zip", "problems": problems})

    def _pack(self, asked: list[tuple[str, Wanted]]) -> tuple[str, list[str]]:
        path = self.desk.folder / f"{secrets.token_urlsafe(16)}.zip"
        names: set[str] = set()
        problems = []
        try:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                for one, wanted in asked:
                    try:
                        picture = self.desk.find(one)
                        with self.desk.using(picture):
                            file, name, _ = self.desk.write(picture, wanted)
                            archive.write(file, _unused(name, names))
                    except SwintormerError as error:
                        problems.append(str(error))
            if not names:
                raise SwintormerError(problems[0] if problems else "There is no result yet.")
        except OSError as error:
            path.unlink(missing_ok=True)
            raise SwintormerError(f"Cannot write the archive: {reason(error)}.") from error
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path.name, problems

    async def packed(self, request: Request) -> Response:
        path = self.desk.folder / Path(request.path_params["name"]).name
        if path.suffix != ".zip" or not path.is_file():
            raise HTTPException(404, "There is no such archive.")
        remove = BackgroundTask(partial(path.unlink, missing_ok=True))
        return FileResponse(path, filename="swintormer.zip", background=remove)

    async def left(self, request: Request) -> Response:
        self.desk.leave(_window(request))
        return JSONResponse({})

    async def quit(self, _: Request) -> Response:
        return JSONResponse({}, background=BackgroundTask(self.leave))

    def _picture(self, request: Request) -> Picture:
        return self.desk.find(request.path_params["id"])


def _window(request: Request) -> str:
    window = request.query_params.get("window", "")
    if not 16 <= len(window) <= 64:
        raise HTTPException(400, "The name of the window is missing.")
    return window


async def _json(request: Request) -> dict[str, Any]:
    try:
        found = await request.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "The request holds no JSON object.")
    return found


def _wanted(asked: Any) -> Wanted:
    try:
        strength, form = float(asked.get("strength", 1)), asked.get("format") or None
        if not 0 <= strength <= 1 or form not in (None, *FORMATS):
            raise ValueError
        return Wanted(str(asked.get("model", "")), strength, bool(asked.get("force")), form)
    except (AttributeError, TypeError, ValueError):
        raise HTTPException(400, "The strength must be 0 to 1, and the format one of the list.") from None


def _unused(name: str, taken: set[str]) -> str:
    """The name, with a number where another result has it."""
    path, number, found = Path(name), 1, name
    while found.lower() in taken:
        number += 1
        found = f"{path.stem} ({number}){path.suffix}"
    taken.add(found.lower())
    return found


class Listening:
    """The server in a thread of its own, so that the main thread can wait for signals.

    Args:
        sock: is listened at; see `listen`.
    """

    def __init__(self, app: Any, sock: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=3,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [sock]}, daemon=True)

    def __enter__(self) -> Listening:
        self.thread.start()
        while self.thread.is_alive() and not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(5)


def listen(host: str, port: int, others: int = 0) -> socket.socket:
    """A socket at the port, or at one of the `others` behind it that is free.

    Raises:
        SwintormerError: none of them can be had.
    """
    for number in range(port, port + others + 1):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            sock = socket.socket(family, kind, protocol)
            try:
                if sys.platform != "win32":  # there it would share the port
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
                sock.listen()
            except OSError:
                sock.close()
                raise
            return sock
        except OSError as error:
            last = error
    raise SwintormerError(f"Cannot listen at {host}, port {port}: {reason(last)}; choose another --port.") from last


def address(sock: socket.socket, token: str) -> str:
    """What the user opens."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = _own_address()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


def _own_address() -> str:
    """Of this machine in its network, as far as it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # no packet is sent; the address is reserved for documentation
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def serve(
    models: Models, sock: socket.socket, host: str, token: str, max_pixels: int, ready: Callable[[str], None]
) -> None:
    """Serve the page until a signal comes or the page says so; then end the work and remove all files.

    Args:
        host, token: see `Guard`; what is not loopback needs a token.
        ready: gets the address that is to be opened.
    """
    if not token and not is_loopback(host):
        raise SwintormerError("An address that other machines reach needs a token.")
    leaving = threading.Event()
    with private_folder() as folder, stoppable() as caught:
        desk = Desk(folder, models, max_pixels)
        desk.start()
        try:
            with Listening(make_app(desk, host, token, leaving.set), sock) as listening:
                ready(address(sock, token))
                while not caught and listening.thread.is_alive() and not leaving.wait(0.2):
                    pass
        finally:
            desk.stop()
