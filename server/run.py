"""A server in this process: its socket, its first answer, and its end."""

import asyncio
import math
import socket
import threading

import uvicorn

from poss_export.errors import InputError
from poss_export.runtime.scheduler import Event, Failed, Piece, Scheduler
from poss_export.server.app import make_app
from poss_export.server.settings import Settings

_LAST_WORDS = 5  # seconds until those who were given up must have been told so
_BACKLOG = 1024  # connections that wait to be accepted, and those that are open at most


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        InputError: it is in use, not allowed, or no address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        message = f"cannot listen at {host!r}, port {port} ({error}); choose others"
        raise InputError(message, options=("host", "port")) from error


def address_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listening: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    host: str = listening.getsockname()[0]
    return host == "::1" or host.startswith("127.")


def warm(scheduler: Scheduler) -> None:
    """Make an answer that nobody asked for: the first one of a machine measures what rounds cost.

    Raises:
        PossExportError: what keeps this machine from answering.
    """
    ended, last = threading.Event(), list[Event]()

    def note(event: Event) -> None:
        if not isinstance(event, Piece):
            last.append(event)
            ended.set()

    scheduler.submit([0], max_new_tokens=2, on_event=note)
    ended.wait()
    if isinstance(last[0], Failed):
        raise last[0].error


class Server(uvicorn.Server):
    """What serves, with `run` and a socket, in any thread, until it is told to end by `should_exit`.

    Then it takes no connections, lets answers end within `drain_seconds`, and gives up those that are left.
    """

    def __init__(self, scheduler: Scheduler, settings: Settings, drain_seconds: float) -> None:
        """Prepare to serve with an entered scheduler."""
        app = make_app(scheduler, settings)
        self._drain_seconds, self._give_up = drain_seconds, app.state.service.end
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                limit_concurrency=_BACKLOG,
                timeout_graceful_shutdown=math.ceil(drain_seconds) + _LAST_WORDS,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain and end; uvicorn calls it."""
        timer = asyncio.get_running_loop().call_later(self._drain_seconds, self._give_up)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def run(scheduler: Scheduler, settings: Settings, listening: socket.socket, drain_seconds: float) -> None:
    """Serve until SIGTERM or SIGINT; parameters as in `Server`."""
    server = Server(scheduler, settings, drain_seconds)
    try:
        server.run(sockets=[listening])
    except (KeyboardInterrupt, SystemExit):  # uvicorn raises the signal again when it has ended
        if not server.started:
            raise
