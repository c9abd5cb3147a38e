"""scripts/registry.py, which keeps the registry fresh, against a site that answers as Hugging Face does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from auxot.core.models.entries import parse_registry

ROOT = Path(__file__).parents[2]
REPO = "unsloth/Qwen3-0.6B-GGUF"
FILES = {
    "Qwen3-0.6B-Q4_K_S.gguf": 383,
    "Qwen3-0.6B-UD-Q8_K_XL.gguf": 844,
    "Qwen3-0.6B-Q2_K.gguf": 296,
    "Qwen3-0.6B-UD-IQ1_S.gguf": 100,
    "README.md": 5,
}


class _Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        siblings = [
            {
                "rfilename": name,
                "size": size,
                "lfs": {"size": size, "sha256": hashlib.sha256(name.encode()).hexdigest()},
            }
            for name, size in FILES.items()
        ]
        body = json.dumps({"id": REPO, "siblings": siblings}).encode()
        self.send_response(200 if self.path == f"/api/models/{REPO}?blobs=true" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Api) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_refresh_adds_sizes_hashes_and_new_files(tmp_path: Path, endpoint: str) -> None:
    """The registry grows old, or a refresh loses what it knew."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "auxot" / "core" / "models", tmp_path / "auxot" / "core" / "models")
    file = tmp_path / "auxot/core/models/registry.json"
    before = parse_registry(file.read_bytes(), where="before")
    argv = [sys.executable, str(tmp_path / "scripts/registry.py"), "refresh", "Qwen3-0.6B"]
    environ = {**os.environ, "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT)}
    subprocess.run(argv, env=environ, check=True, capture_output=True, timeout=60)
    after = parse_registry(file.read_bytes(), where="after")
    model, known = after.model("Qwen3-0.6B"), before.model("Qwen3-0.6B")
    assert model is not None
    assert known is not None
    by_name = {one.quantization: one for one in model.variants}
    assert by_name["Q4_K_S"].files[0].size_bytes == 383
    assert by_name["Q4_K_S"].files[0].sha256 == hashlib.sha256(b"Qwen3-0.6B-Q4_K_S.gguf").hexdigest()
    assert by_name["Q8_K"].files[0].path == "Qwen3-0.6B-UD-Q8_K_XL.gguf"
    assert set(by_name) == {one.quantization for one in known.variants} | {"Q2_K"}
    assert (model.attention, model.capabilities) == (known.attention, known.capabilities)
    assert after.model("Qwen3-8B") == before.model("Qwen3-8B")
