"""A real S3 endpoint on loopback, that can be told to fail."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest

KEY_ID, SECRET = "AKIAEXAMPLEONLYFORTESTS", "secret-that-must-never-be-shown"
BUCKET = "lakes"


@dataclass(frozen=True)
class Server:
    """An S3 server with one bucket."""

    endpoint: str

    @property
    def client(self) -> Any:
        """What looks at the bucket from outside."""
        return boto3.client("s3", endpoint_url=self.endpoint)

    def fail(self, **faults: Any) -> dict[str, int]:
        """Set the faults; none for none. Return the requests and failures since the last call."""
        body = json.dumps(faults).encode()
        request = urllib.request.Request(f"{self.endpoint}/_faults", data=body, method="PUT")
        with urllib.request.urlopen(request) as answer:
            counts: dict[str, int] = json.load(answer)
        return counts

    def keys(self, url: str) -> list[str]:
        """Return the keys of the objects under a lake's URL."""
        prefix = url.removeprefix(f"s3://{BUCKET}/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]


@pytest.fixture(scope="session")
def process() -> Iterator[str]:
    """The server's process; its endpoint."""
    script = Path(__file__).with_name("s3_server.py")
    with subprocess.Popen(
        [sys.executable, "-P", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        assert server.stdin is not None
        server.stdin.close()
        server.wait(timeout=10)


@pytest.fixture(scope="module")
def environment(process: str) -> Iterator[str]:
    """The standard variables of AWS, set for this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", process)
        yield process


@pytest.fixture(scope="module")
def module_server(environment: str) -> Server:
    """The server with its bucket."""
    server = Server(environment)
    server.client.create_bucket(Bucket=BUCKET)
    return server


@pytest.fixture
def server(module_server: Server) -> Iterator[Server]:
    """The server, without faults before and after."""
    module_server.fail()
    yield module_server
    module_server.fail()


@pytest.fixture
def url(server: Server) -> str:
    """Where no lake is yet; spaces and letters beyond ASCII are allowed in a key."""
    return f"s3://{BUCKET}/of a tést/{uuid4().hex}"
