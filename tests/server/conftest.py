"""A real server on a free port, in a thread of this process, of the tiny bundle with a chat template."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from poss_export.manifest import read_manifest, write_manifest
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.scheduler import Scheduler
from poss_export.server.run import Server, address_of, listen
from poss_export.server.settings import Settings
from tests.fixtures.bundles import TEMPLATE
from tests.fixtures.gate import Gate

MODEL = "tiny"


@dataclass(frozen=True)
class Served:
    address: str  # a URL
    bundle: Bundle
    scheduler: Scheduler
    server: Server

    clients: dict[str, OpenAI] = field(default_factory=dict)

    def client(self, key: str = "none") -> OpenAI:
        if key not in self.clients:
            self.clients[key] = OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0)
        return self.clients[key]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 20
        while self.scheduler.running or self.scheduler.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.005)


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def chats(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny bundle with a chat template."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("served") / MODEL))
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, text=replace(manifest.text, chat_template=TEMPLATE)))
    return folder


@pytest.fixture(scope="session")
def serve(chats: Path) -> Serve:
    """Return serve(queue=64, drain_seconds=5, **settings): a server within it."""

    @contextmanager
    def served(queue: int = 64, drain_seconds: float = 5, **settings: Any) -> Iterator[Served]:
        with (
            listen("127.0.0.1", 0) as listening,
            open_bundle(chats, threads=1) as bundle,
            Scheduler(bundle, queue=queue) as scheduler,
        ):
            server = Server(scheduler, Settings(MODEL, **settings), drain_seconds)
            address = address_of(listening)
            thread = threading.Thread(target=server.run, args=([listening],))
            thread.start()
            made = Served(address, bundle, scheduler, server)
            try:
                yield made
            finally:
                for client in made.clients.values():
                    client.close()
                server.should_exit = True
                thread.join(20)
                assert not thread.is_alive()

    return served


@pytest.fixture(scope="module")
def server(serve: Serve) -> Iterator[Served]:
    """A server without keys and with the usual limits."""
    with serve() as served:
        yield served


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bundle], Gate]:
    """Return gate(bundle)."""
    return lambda bundle: Gate(bundle, monkeypatch)
