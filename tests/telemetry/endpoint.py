"""A local HTTP endpoint that takes arrays of events, or fails on request."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint:
    """What the endpoint has received, and how it answers.

    Attributes:
        batches: Every array that was taken.
        arrived: When, as ``time.perf_counter()``.
        answers: Status codes for the next requests, or pairs of one and where it redirects to; 200
            when there are none left.
        headers: Of the newest request.
        gate: Cleared to have requests hang.
    """

    def __init__(self):
        self.batches = []
        self.arrived = []
        self.answers = []
        self.headers = {}
        self.gate = threading.Event()
        self.gate.set()
        self.url = ""

    @property
    def events(self):
        return [event for batch in self.batches for event in batch]

    def take(self, handler):
        arrived = time.perf_counter()
        self.headers = dict(handler.headers)
        batch = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.gate.wait()
        answer = self.answers.pop(0) if self.answers else 200
        status, elsewhere = answer if isinstance(answer, tuple) else (answer, None)
        if status == 200:
            self.batches.append(batch)
            self.arrived.append(arrived)
        handler.send_response(status)
        if elsewhere is not None:
            handler.send_header("Location", elsewhere)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@contextmanager
def serve():
    """Run an endpoint on a free port of this machine."""
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            endpoint.take(self)

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass  # a client that has left

    with Server(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_port}/events"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.gate.set()
            server.shutdown()
            thread.join()
