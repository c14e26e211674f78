"""MLflow's own tracking server, over sqlite, on a free port of this machine.

``mlflow server`` starts this application under another server, and imports what only the whole of
MLflow has installed; the application itself runs with mlflow-skinny, flask and flask-cors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

_CODE = """
import os, sys
folder = sys.argv[1]
os.environ.update({
    "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
    "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{folder}/mlflow.db",
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/artifacts",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
})
import logging
from werkzeug.serving import make_server
from mlflow.server import app
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", int(sys.argv[2]), app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Server:
    """A tracking server that can be stopped and started again where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def uri(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, on the port that it had."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(self._folder), str(self._port)],
            stdout=subprocess.PIPE,
            stderr=(self._folder / "server.log").open("w"),
            text=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError((self._folder / "server.log").read_text())
        self._port = int(line)

    def stop(self) -> None:
        """End it; what it has stored stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None


@contextmanager
def serve(folder: Path):
    """Run a tracking server that keeps everything in ``folder``."""
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()
