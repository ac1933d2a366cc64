"""A server that speaks as much of the Hugging Face hub's API as huggingface_hub uses for models."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class Server(http.server.ThreadingHTTPServer):
    """Has models, and makes new ones.

    Attributes:
      models: by ORGANISATION/NAME and revision, bytes by file name.
      private: models that need the token.
      gated: models whose files need the token.
      token: the only one that is known.
      error: status code of all answers; None where they are right.
      log: (method, path) of every request.
      made: what `create_repo` sent, in order.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.private, self.gated = {}, set(), set()
        self.token, self.error, self.log, self.made = "hf_right", None, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, name, files, revision="main"):
        """Adds a model; `files` has bytes by file name."""
        self.models.setdefault(name, {})[revision] = dict(files)

    def close(self):
        self.shutdown()
        self.server_close()


def commit_of(files):
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.log.append((self.command, path))
        status, headers, answer = self.answer(path, body)
        if not isinstance(answer, bytes):
            answer = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(answer), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_HEAD = do_POST = do_GET

    def log_message(self, *unused):
        pass

    def answer(self, path, body):
        """Returns status, headers, and JSON or bytes."""
        server = self.server
        knows = self.headers.get("Authorization") == f"Bearer {server.token}"
        if server.error:
            return server.error, {}, {"error": "it does not work now"}
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self.create(json.loads(body), knows)
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(\w+)/([^/]+)(?:/(.*))?", path)
        if found is None:  # what a client asks for besides
            return 404, {}, {}
        name, verb, revision, file = found.groups()
        if name not in server.models or (name in server.private and not knows):
            return 401, {"X-Error-Code": "RepoNotFound"}, {}
        revisions = server.models[name]
        by_commit = {commit_of(files): files for files in revisions.values()}
        files = {**by_commit, **revisions}.get(revision)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {}
        commit = commit_of(files)
        if verb == "revision":
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            return 200, {}, {"id": name, "sha": commit, "siblings": siblings}
        if verb == "tree":
            return 200, {}, [tree_entry(file, data) for file, data in files.items()]
        if verb == "resolve":
            if name in server.gated and not knows:
                return 401, {"X-Error-Code": "GatedRepo"}, {}
            if file not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, {}
            tag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
            return 200, {"X-Repo-Commit": commit, "ETag": tag}, files[file]
        if verb == "preupload":
            asked = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {}, {"files": [{"path": x["path"], **modes} for x in asked]}
        return self.commit(name, body)

    def create(self, asked, knows):
        if not knows:
            return 401, {}, {"error": "Invalid username or password."}
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "org":
            return 403, {}, {"error": "You don't have the rights to create a model there"}
        self.server.made.append(asked)
        if name in self.server.models:
            return 409, {}, {"url": f"{self.server.url}/{name}"}
        self.server.add(name, {})
        return 200, {}, {"url": f"{self.server.url}/{name}", "name": name}

    def commit(self, name, body):
        files = self.server.models[name]["main"]
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = commit_of(files)
        where = f"{self.server.url}/{name}/commit/{commit}"
        return 200, {}, {"success": True, "commitOid": commit, "commitUrl": where, "hookOutput": ""}


def tree_entry(file, data):
    oid = hashlib.sha1(data).hexdigest()
    return {"type": "file", "path": file, "size": len(data), "oid": oid}
