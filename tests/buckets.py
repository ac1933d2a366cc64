"""A server that speaks as much of Google Cloud Storage's JSON API as gcsfs, TensorStore and
google-cloud-storage use; see https://cloud.google.com/storage/docs/json_api."""

import email
import http.server
import itertools
import json
import re
import threading
import urllib.parse


class Server(http.server.ThreadingHTTPServer):
    """Has a bucket named `bucket`, and one named `locked`.

    Attributes:
      objects: (generation, bytes) by BUCKET/NAME.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.uploads = {}, {}
        self.lock, self.numbers = threading.Lock(), itertools.count(1)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that doesn't want the rest
            self.close_connection = True

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            status, headers, answer = self.answer(self.command, self.path, body)
        if not isinstance(answer, bytes):
            answer = json.dumps(answer).encode()
            headers = {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(answer)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *unused):
        pass

    def answer(self, method, address, body):
        """Returns status, headers and JSON or bytes."""
        parts = urllib.parse.urlsplit(address)
        query = dict(urllib.parse.parse_qsl(parts.query))
        api = r"(?:/upload|/download)?/storage/v1/b/([^/]+)(/o)?(?:/(.*))?"
        bucket, objects, name = re.fullmatch(api, parts.path).groups()
        if bucket != "bucket":
            status = 401 if bucket == "locked" else 404
            return status, {}, {"error": {"code": status, "message": "No, anonymous caller"}}
        if not objects:
            return 200, {}, {"kind": "storage#bucket", "name": bucket}
        if method in ("POST", "PUT") and name is None:
            return self.upload(bucket, query, body)
        if name is None:
            return 200, {}, self.listing(bucket, query)
        name, _, destination = name.partition("/moveTo/o/")
        key = f"{bucket}/{urllib.parse.unquote(name)}"
        if key not in self.server.objects:
            return 404, {}, {"error": {"code": 404, "message": f"No such object: {key}"}}
        generation, data = self.server.objects[key]
        if destination:
            del self.server.objects[key]
            return 200, {}, self.put(f"{bucket}/{urllib.parse.unquote(destination)}", data)
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return 412, {}, {}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, {}, b""
        if method == "DELETE":
            del self.server.objects[key]
            return 204, {}, b""
        if query.get("alt") != "media":
            return 200, {}, self.metadata(key)
        headers = {"x-goog-generation": generation}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            if first >= len(data):
                return 416, headers, b""
            part = data[first : last + 1]
            content_range = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
            return 206, {**headers, "Content-Range": content_range}, part
        return 200, headers, data

    def upload(self, bucket, query, body):
        if query["uploadType"] == "media":
            name = query["name"]
        elif query["uploadType"] == "multipart":
            kind = self.headers["Content-Type"].encode()
            described, content = email.message_from_bytes(
                b"Content-Type: " + kind + b"\r\n\r\n" + body
            ).get_payload()
            name, body = (
                json.loads(described.get_payload())["name"],
                content.get_payload(decode=True),
            )
        elif "upload_id" not in query:  # the start of a resumable one
            number = str(next(self.server.numbers))
            self.server.uploads[number] = query.get("name") or json.loads(body)["name"], b""
            where = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable"
            return 200, {"Location": f"{where}&upload_id={number}"}, {}
        else:
            name, before = self.server.uploads[query["upload_id"]]
            body = before + body
            if self.headers["Content-Range"].endswith("/*"):
                self.server.uploads[query["upload_id"]] = name, body
                return 308, {"Range": f"bytes=0-{len(body) - 1}"}, b""
        key = f"{bucket}/{name}"
        generation = self.server.objects.get(key, (0, b""))[0]
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return 412, {}, {"error": {"code": 412, "message": "Precondition Failed"}}
        return 200, {}, self.put(key, body)

    def put(self, key, data):
        self.server.objects[key] = next(self.server.numbers), data
        return self.metadata(key)

    def metadata(self, key):
        generation, data = self.server.objects[key]
        bucket, _, name = key.partition("/")
        time = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "timeCreated": time,
            "updated": time,
        }

    def listing(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        items, folders = [], set()
        for key in sorted(self.server.objects):
            place, _, name = key.partition("/")
            if place != bucket or not name.startswith(prefix) or name < start:
                continue
            if end and name >= end:
                continue
            below, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                folders.add(prefix + below + delimiter)
            else:
                items.append(self.metadata(key))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}
