#!/usr/bin/env python3
"""A server that misbehaves as its paths say, for test_fetch.sh.

  fetch_server.py FOLDER [CERTIFICATE KEY]

Writes FOLDER/a.bin and b.bin (two files of one size), FOLDER/ports (two http ports, then one of https when there is a certificate) and
FOLDER/log: one JSON line for each request.
"""
import gzip
import hashlib
import json
import os
import random
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

folder = sys.argv[1]
SIZE = 1_000_003
A, B = (random.Random(seed).randbytes(SIZE) for seed in (1, 2))
seen = {}  # requests so far, by path
lock = threading.Lock()
ports = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def start(self, status, **headers):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def send_from(self, data, tag, most=None, pace=0.0, honour=True, if_range=True, **headers):
        """A well-made answer about data, of which only `most` bytes are sent."""
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        start = int(asked[6:-1]) if asked and honour else 0
        if condition and if_range and condition != tag:
            start = 0
        if start >= len(data):
            return self.start(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
        if tag:
            headers["Last_Modified" if "GMT" in tag else "ETag"] = tag
        if asked and start:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.start(206 if asked and start else 200, Content_Length=len(data) - start, **headers)
        body = data[start:][: most if most is not None else len(data)]
        for i in range(0, len(body), 1 << 14):
            self.wfile.write(body[i:i + (1 << 14)])
            time.sleep(pace)

    def hang(self):
        time.sleep(30)

    def do_GET(self):
        with lock:
            n = seen[self.path] = seen.get(self.path, 0) + 1
            with open(os.path.join(folder, "log"), "a") as f:
                f.write(json.dumps({"n": n, "path": self.path, "port": self.server.server_port, **{k.lower(): v for k, v in self.headers.items()}}) + "\n")
        kind, _, rest = self.path[1:].partition("/")
        try:
            getattr(self, "get_" + kind.replace("-", "_"), self.missing)(n, rest)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.close_connection = True

    def missing(self, n, rest):
        self.start(404, Content_Length=0)

    def get_good(self, n, rest): self.send_from(A, '"a"')
    def get_cut(self, n, rest): self.send_from(A, '"a"', most=200_000)
    def get_cut_once(self, n, rest): self.send_from(A, '"a"', most=300_000 if n == 1 else None)
    def get_cut_dated(self, n, rest): self.send_from(A, "Tue, 03 Nov 2026 08:00:00 GMT", most=200_000)
    def get_broken(self, n, rest):  # TAG/...: a piece, then an error, then all
        if n == 2:
            return self.start(500, Content_Length=0)
        self.send_from(A, {"strong": '"a"', "weak": 'W/"a"', "none": None}[rest.split("/")[0]], most=200_000 if n == 1 else None)

    def get_cut_untagged(self, n, rest): self.send_from(A, None, most=300_000 if n == 1 else None)
    def get_no_range(self, n, rest): self.send_from(A, '"a"', most=300_000 if n == 1 else None, honour=False)
    def get_no_range_cut(self, n, rest): self.send_from(A, '"a"', most=300_000, honour=False)
    def get_slow(self, n, rest): self.send_from(A, '"a"', pace=0.02)
    def get_nothing(self, n, rest): self.start(200, Content_Length=0)
    def get_cut_at_once(self, n, rest): pass

    def get_changed(self, n, rest):
        self.send_from(*((A, '"a"', 300_000) if n == 1 else (B, '"b"')))

    def get_changed_lie(self, n, rest):  # pays no heed to If-Range, but says which file it is
        self.send_from(*((A, '"a"', 300_000) if n == 1 else (B, '"b"')), if_range=False)

    def get_changed_always(self, n, rest):
        self.send_from(A, f'"{n}"', most=300_000, if_range=False)

    def get_spliced(self, n, rest):  # another file under the same tag
        self.send_from(*((A, '"same"', 300_000) if n == 1 else (B, '"same"')))

    def get_grown(self, n, rest):  # the same tag, another size
        self.send_from(*((A, '"same"', 300_000) if n == 1 else (A + b"more", '"same"')))

    def get_bad_range(self, n, rest):  # once: not the piece that was asked for
        if n == 2:
            self.start(206, ETag='"a"', Content_Range=f"bytes 0-9/{SIZE}", Content_Length=10)
            return self.wfile.write(A[:10])
        self.send_from(A, '"a"', most=300_000 if n == 1 else None)

    def get_416(self, n, rest):
        if n == 2:
            return self.start(416, Content_Length=0)
        self.send_from(A, '"a"', most=300_000 if n == 1 else None)

    def get_stall(self, n, rest):
        self.send_from(A, '"a"', most=300_000 if n == 1 else None)
        if n == 1:
            self.hang()

    def get_stall_always(self, n, rest):
        self.start(200, Content_Length=SIZE)
        self.hang()

    def get_silent(self, n, rest): self.hang()

    def get_drip(self, n, rest):
        self.start(200, Content_Length=SIZE, ETag='"a"')
        for i in range(300):
            self.wfile.write(A[i:i + 1])
            time.sleep(0.1)

    def get_short(self, n, rest):  # says more than there is
        asked = self.headers.get("Range")
        if asked:
            return self.start(416, Content_Length=0)
        self.start(200, Content_Length=2 * SIZE, ETag='"a"')
        self.wfile.write(A)

    def get_long(self, n, rest):  # says less than there is
        self.start(200, Content_Length=SIZE - 100)
        self.wfile.write(A)

    def get_huge(self, n, rest): self.start(200, Content_Length=10**17)
    def get_negative(self, n, rest): self.start(200, Content_Length=-5)

    def get_endless(self, n, rest):
        self.start(200)
        while True:
            self.wfile.write(A)

    def get_endless_redirect(self, n, rest):
        self.start(302, Location="/good/f.bin")
        while True:
            self.wfile.write(A)

    def get_flood(self, n, rest):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X-Header: " + b"x" * 200 + b"\r\n")

    def get_chunked(self, n, rest):  # cut inside a chunk
        if n > 1:
            return self.send_from(A, '"a"')
        self.start(200, Transfer_Encoding="chunked", ETag='"a"')
        self.wfile.write(b"10000\r\n" + A[:65536] + b"\r\n" + b"20000\r\n" + A[65536:100000])

    def get_until_closed(self, n, rest):
        self.start(200)
        self.wfile.write(A)

    def get_gzip(self, n, rest):
        self.start(200, Content_Encoding="gzip", Content_Length=len(gzip.compress(bytes(1 << 20))))
        self.wfile.write(gzip.compress(bytes(1 << 20)))

    def get_page(self, n, rest):
        self.start(200, Content_Type="text/html; charset=utf-8", Content_Length=13)
        self.wfile.write(b"<html></html>")

    def get_status(self, n, rest):  # NUMBER/..., with an endless page
        self.start(int(rest.split("/")[0]), Content_Type="text/html")
        while True:
            self.wfile.write(b"<p>\x1b[2J</p>" * 1000)

    def get_busy(self, n, rest):
        if n == 1:
            return self.start(429, Retry_After=1, Content_Length=0)
        self.send_from(A, '"a"')

    def get_busy_long(self, n, rest): self.start(503, Retry_After=86400, Content_Length=0)
    def get_ill_once(self, n, rest): self.start(500, Content_Length=0) if n == 1 else self.send_from(A, '"a"')
    def get_loop(self, n, rest): self.start(302, Location=self.path, Content_Length=0)
    def get_lost(self, n, rest): self.start(302, Content_Length=0)
    def get_to(self, n, rest): self.start(307, Location=unquote(rest.partition("/")[0]), Content_Length=0)

    def get_secret(self, n, rest):
        self.send_from(A, '"a"') if self.headers.get("Authorization") == "Bearer s3cret-t0ken" else self.start(401, Content_Length=0)

    def get_owner(self, n, rest):  # as the hub: large files lie elsewhere, and the redirect says what they hash to
        if not self.headers.get("Authorization"):
            return self.start(401, Content_Length=0)
        digest = hashlib.sha256(B if "liar" in rest else A).hexdigest()
        self.start(302, Location=f"http://127.0.0.1:{ports[1]}/good/blob?signed=yes", X_Linked_ETag=f'"{digest}"', Content_Length=0)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


for name, data in (("a.bin", A), ("b.bin", B)):
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)
open(os.path.join(folder, "log"), "w").close()
servers = [Server(("127.0.0.1", 0), Handler) for _ in range(3 if len(sys.argv) > 3 else 2)]
if len(servers) > 2:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(sys.argv[2], sys.argv[3])
    servers[2].socket = tls.wrap_socket(servers[2].socket, server_side=True)
ports += [s.server_port for s in servers]
for s in servers:
    threading.Thread(target=s.serve_forever, daemon=True).start()
with open(os.path.join(folder, "ports.new"), "w") as f:
    f.write(" ".join(map(str, ports)) + "\n")
os.rename(os.path.join(folder, "ports.new"), os.path.join(folder, "ports"))
while os.getppid() != 1:  # ends with the test that started it
    time.sleep(0.5)
