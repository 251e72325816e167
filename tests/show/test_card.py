"A model card of a classifier whose description somebody else wrote, and an upload."
import base64
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import later, run

from wiseft.base.lazy import huggingface_hub
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier

write_card = later("wiseft.show.card", "write_card")


def test_a_merge_that_is_not_ours(tmp_path):
    pico_classifier(["cat", "dog"]).save(tmp_path / "theirs")
    file = tmp_path / "theirs/wiseft.json"
    card = json.loads(file.read_text())
    card["recipe"]["merge"] = "by hand"
    del card["sha256"]
    file.write_text(json.dumps(card))
    assert "image classifier of 2 classes" in write_card(tmp_path / "theirs").read_text(encoding="utf-8")


COMMIT = 40 * "1"


class Hub(BaseHTTPRequestHandler):
    "As much of the hub as an upload asks for; what arrives is kept by name."
    def do_POST(self):
        body, path = self.rfile.read(int(self.headers["Content-Length"])), self.path.partition("?")[0]
        answer = dict(url=f"{self.server.address}/me/mine", errors=[], warnings=[])
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            answer["files"] = [dict(path=f["path"], uploadMode="regular", shouldIgnore=False) for f in files]
        if path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files.update({f["path"]: base64.b64decode(f["content"]) for f in files})
            url = f"{self.server.address}/me/mine/commit/{COMMIT}"
            answer |= dict(commitUrl=url, commitOid=COMMIT, pullRequestUrl=None)
        is_there = path.endswith("/repos/create") and path in self.server.requests
        self.server.requests.append(path)
        self.send_response(409 if is_there else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_GET = do_POST

    def log_message(self, *args):
        "Nothing on standard error."


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.requests, server.address = {}, [], f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


PUSH = "import sys; from wiseft.show.card import push_to_hub; print(*(push_to_hub(*sys.argv[1:]) for _ in range(2)))"


@pytest.mark.slow
def test_push(hub, tmp_path):
    "What arrives at a server in the hub's layout is the folder, and loads. It may be uploaded again."
    classifier = pico_classifier(["cat", "dog"])
    classifier.save(tmp_path / "saved")
    settings = dict(HF_ENDPOINT=hub.address, HF_TOKEN="hf_none", HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "home"))
    env = os.environ | settings
    done = run(sys.executable, "-c", PUSH, tmp_path / "saved", "me/mine", env=env)
    assert done.stdout.split() == 2 * [f"{hub.address}/me/mine/commit/{COMMIT}"]
    (tmp_path / "arrived").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "arrived" / name).write_bytes(content)
    assert load_classifier(tmp_path / "arrived").hash == classifier.hash
    assert huggingface_hub.ModelCard(hub.files["README.md"].decode()).data.library_name == "wiseft"
