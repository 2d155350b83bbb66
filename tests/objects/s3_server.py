"""An S3 server on loopback that can be told to fail; it stops when its input is closed.

s3_server.py    prints its port, then serves moto's S3

``PUT /_faults`` with JSON sets what goes wrong with requests whose method is in ``methods``:
``refuse`` and ``lose`` are shares of them, by a seeded generator: refused with 503 before anything
is done, or done and then answered with 503; ``hang`` so many of them for ``seconds``; ``deny``:
all are answered with 403.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_QUIET = {"methods": [], "refuse": 0.0, "lose": 0.0, "hang": 0, "seconds": 0.0, "deny": False}


class Faulty:
    """moto's application, with faults."""

    def __init__(self, app: App) -> None:
        self.app, self.lock = app, threading.Lock()
        self.faults: dict[str, Any] = dict(_QUIET)
        self.random, self.n_failed, self.n_requests = random.Random(0), 0, 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_faults":
            return self._set(environ, start)
        with self.lock:
            self.n_requests += 1
            outcome = self._outcome(environ["REQUEST_METHOD"])
            self.n_failed += outcome != "do"
        if outcome == "hang":
            time.sleep(self.faults["seconds"])
        if outcome in ("refuse", "deny"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status = "503 Slow Down" if outcome == "refuse" else "403 Forbidden"
            start(status, [("Content-Length", "0")])
            return [b""]
        if outcome == "lose":
            for _ in self.app(environ, lambda *a, **k: lambda data: None):
                pass
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start)

    def _outcome(self, method: str) -> str:
        faults = self.faults
        if method not in faults["methods"]:
            return "do"
        if faults["deny"]:
            return "deny"
        if faults["hang"]:
            faults["hang"] -= 1
            return "hang"
        drawn = self.random.random()
        if drawn < faults["refuse"]:
            return "refuse"
        return "lose" if drawn < faults["refuse"] + faults["lose"] else "do"

    def _set(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self.lock:
            counts = {"failed": self.n_failed, "requests": self.n_requests}
            if environ["REQUEST_METHOD"] == "PUT":
                body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
                self.faults = {**_QUIET, **json.loads(body)}
                self.random, self.n_failed, self.n_requests = random.Random(0), 0, 0
        answer = json.dumps(counts).encode()
        start("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.server_port, flush=True)

    def stop_with_parent() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
