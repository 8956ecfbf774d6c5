"""As much of a wandb server as a run needs: it keeps what is sent to each run, and tells it when a run is resumed."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FILES = ("wandb-history.jsonl", "wandb-events.jsonl", "output.log", "wandb-summary.json")


class WandbServer:
    """The state of the server.

    Attributes:
        runs: run id -> the variables it was last upserted with.
        lines: run id -> file -> lines, by the offsets that clients gave.
        exits: run id -> exit codes.
        preempting: run ids that said so.
    """

    def __init__(self) -> None:
        self.address = ""
        self.runs: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, dict[str, list[str]]] = {}
        self.exits: dict[str, list[int]] = {}
        self.preempting: set[str] = set()

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run."""
        return [json.loads(line) for line in self.lines[run].get(FILES[0], [])]

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            name = given["name"]
            new = name not in self.runs
            self.runs[name] = {**self.runs.get(name, {}), **{k: v for k, v in given.items() if v is not None}}
            self.lines.setdefault(name, {file: [] for file in FILES})
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": given["entity"] or "team"}}
            bucket = {"id": name, "name": name, "displayName": given["displayName"], "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": new}}
        if "RunResumeStatus" in query:
            model = {"id": "m", "name": given["project"], "entity": {"id": "e", "name": "team"}}
            return {"model": {**model, "bucket": self._bucket(given["name"])}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.address}/upload"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _bucket(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs:
            return None
        lines = self.lines[name]
        tail = json.dumps(lines[FILES[0]][-1:])
        summary = (lines[FILES[3]] or ["{}"])[-1]
        counts = {"historyLineCount": len(lines[FILES[0]]), "eventsLineCount": len(lines[FILES[1]]), "logLineCount": 0}
        stored = {"id": name, "name": name, "displayName": name, "config": self.runs[name].get("config", "{}")}
        known = {"historyTail": tail, "eventsTail": "[]", "summaryMetrics": summary, "wandbConfig": '{"t": 1}'}
        return {**stored, **counts, **known, "tags": [], "notes": ""}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        for file, chunk in (sent.get("files") or {}).items():
            kept = self.lines.setdefault(run, {}).setdefault(file, [])
            kept[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]
        if sent.get("complete"):
            self.exits.setdefault(run, []).append(sent["exitcode"])
        if sent.get("preempting"):
            self.preempting.add(run)


@contextmanager
def serving(silent: bool = False) -> Iterator[WandbServer]:
    """A server on a port of this machine.

    Args:
        silent: take requests and never answer.
    """
    state, over = WandbServer(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if silent:
                over.wait()
                return
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            sent = json.loads(body or b"{}") if self.command == "POST" else {}
            if self.path.endswith("/file_stream"):
                state.stream(self.path.split("/")[-2], sent)
                answer: dict[str, Any] = {"exitcode": None, "limits": {}}
            else:
                answer = {"data": state.graphql(sent.get("query", ""), sent.get("variables") or {})}
            raw = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_PUT = do_POST

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
