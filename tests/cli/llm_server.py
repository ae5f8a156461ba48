#!/usr/bin/env python3
"""A chat-completions server whose answers are canned, and which misbehaves as its paths say, for test_autolabel.sh.

  llm_server.py FOLDER [CERTIFICATE KEY]

Writes FOLDER/ports (two http ports, then one of https when there is a certificate) and FOLDER/log: one JSON line for each request, with "under_way": how
many of that path were. An URL is http://127.0.0.1:PORT/KIND/NAME/v1; what KIND_* does to a request depends on how many came to that URL.
The answers: an explanation is the words that stand between << and >> in the last message, so it depends on the prompt and on nothing else; a judgement is 1
for the texts that hold a marked word, or, unmarked, an 's'; a simulation gives 10 to tokens with an 'e'.
"""
import json
import os
import re
import ssl
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

folder = sys.argv[1]
lock = threading.Lock()
seen = {}
under_way = {}  # by path
ports = []


def answer(messages):
    last = messages[-1]["content"]
    if "Tokens (" in last:
        lines = last.split("\n", 2)[2].split("\n")
        return "\n".join("%s: %d" % (m.group(1), 10 if "e" in m.group(2) else 0) for m in (re.match(r"(\d+): ?(.*)", s) for s in lines) if m)
    if "Texts (" in last:
        texts = [s for s in last.split("\n")[2:] if re.match(r"\d+\. ", s)]
        return json.dumps([int("<<" in s if "<<" in last else "s" in s) for s in texts])
    words = re.findall(r"<<(.*?)>>", last)
    return "They are all alike.\nLABEL: \"words like %s.\"" % ", ".join(sorted({w.strip() for w in words if w.strip()})[:3])


def logprobs(token):
    top = [{"token": token, "logprob": -0.2}]
    if token.strip().isdigit():
        top += [{"token": str((int(token) + 3) % 10), "logprob": -2.0}, {"token": "x", "logprob": -3.0}]
    return {"token": token, "logprob": -0.2, "top_logprobs": top}


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

    def error(self, status, text, **headers):
        body = json.dumps({"error": {"message": text, "type": "x"}}).encode()
        self.start(status, Content_Type="application/json", Content_Length=len(body), **headers)
        self.wfile.write(body)

    def pieces(self, **change):
        """The events of a good answer."""
        text = change.get("text", answer(self.asked["messages"]))
        tokens = re.findall(r"\d+|[^\d]", text) if self.asked.get("logprobs") else re.findall(r"(?s).{1,7}", text)
        for t in tokens:
            choice = {"index": 0, "delta": {"content": t}, "finish_reason": None}
            if self.asked.get("logprobs"):
                choice["logprobs"] = {"content": [logprobs(t)]}
            yield {"choices": [choice]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        if self.asked.get("stream_options", {}).get("include_usage"):
            yield {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}

    def events(self, **change):
        return [b"data: " + json.dumps(p).encode() + b"\n\n" for p in self.pieces(**change)] + [b"data: [DONE]\n\n"]

    def good(self, pace=0.0, **change):
        self.start(200, Content_Type="text/event-stream")
        for e in self.events(**change):
            self.wfile.write(e)
            self.wfile.flush()
            time.sleep(pace)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked = json.loads(body)
        with lock:
            under_way[self.path] = under_way.get(self.path, 0) + 1
            n = seen[self.path] = seen.get(self.path, 0) + 1
            with open(os.path.join(folder, "log"), "a") as f:
                f.write(json.dumps({"n": n, "path": self.path, "port": self.server.server_port, "time": time.time(), "under_way": under_way[self.path],
                                    "asked": self.asked, **{k.lower(): v for k, v in self.headers.items()}}) + "\n")
        kind = self.path[1:].partition("/")[0]
        try:
            getattr(self, "do_" + kind.replace("-", "_"), self.missing)(n)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            pass
        with lock:
            under_way[self.path] -= 1
        self.close_connection = True

    def missing(self, n): self.error(404, "no such model")
    def do_good(self, n): self.good()
    def do_slow(self, n): time.sleep(0.3); self.good()
    def do_slower(self, n): time.sleep(1.5); self.good()
    def do_trickle(self, n): self.good(pace=0.02)

    def do_whole(self, n):  # knows no streaming
        c = {"index": 0, "message": {"role": "assistant", "content": answer(self.asked["messages"])}, "finish_reason": "stop"}
        body = json.dumps({"choices": [c], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}).encode()
        self.start(200, Content_Type="application/json", Content_Length=len(body))
        self.wfile.write(body)

    def do_bytes(self, n):  # a byte at a time: events, lines and characters are split anywhere
        self.start(200, Content_Type="text/event-stream; charset=utf-8")
        for p in self.pieces(text="LABEL: na\u00efve caf\u00e9s \U0001f980") if "Texts:" in self.asked["messages"][-1]["content"] else self.pieces():
            for b in b": a comment\r\nevent: message\r\ndata: " + json.dumps(p, ensure_ascii=False).encode() + b"\r\n\r\n":
                self.wfile.write(bytes([b]))
                self.wfile.flush()
        self.wfile.write(b"data: [DONE]")

    def do_no_done(self, n):  # without its last line
        self.start(200, Content_Type="text/event-stream")
        self.wfile.write(b"".join(self.events()[:-1]))

    def do_cut(self, n):  # in the middle of a chunk, the first time
        if n > 1:
            return self.good()
        self.start(200, Content_Type="text/event-stream", Transfer_Encoding="chunked")
        self.wfile.write(b"1000\r\n" + self.events()[0][:20])

    def do_half(self, n):  # stops in the middle, always
        self.start(200, Content_Type="text/event-stream")
        self.wfile.write(self.events()[0])

    def do_broken(self, n):  # no JSON, the first time
        if n > 1:
            return self.good()
        self.start(200, Content_Type="text/event-stream")
        self.wfile.write(b"data: {\"choices\": [{\x1b[2J\n\n")

    def do_garbage(self, n):
        self.start(200, Content_Type="application/json")
        self.wfile.write(b"{]")

    def do_latin(self, n):  # no UTF-8
        self.start(200, Content_Type="text/event-stream")
        self.wfile.write(b'data: {"choices":[{"delta":{"content":"LABEL: caf\xe9"}}]}\n\n')

    def do_nul(self, n):
        self.start(200, Content_Type="text/event-stream")
        self.wfile.write(b'data: {"choices":[{"delta":{"content":"LABEL: a\\u0000b"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')

    def do_empty(self, n):
        self.start(200, Content_Type="text/event-stream")
        self.wfile.write(b"data: [DONE]\n\n")

    def do_page(self, n):
        self.start(200, Content_Type="text/html")
        self.wfile.write(b"<html>\x1b[2Jsign in</html>")

    def do_endless(self, n):  # one text without end
        self.start(200, Content_Type="text/event-stream")
        while True:
            self.wfile.write(b'data: {"choices":[{"delta":{"content":"LABEL: and on and on "}}]}\n\n')

    def do_pings(self, n):  # comments without end
        self.start(200, Content_Type="text/event-stream")
        while True:
            self.wfile.write(b": ping\n\n" * 1000)

    def do_line(self, n):  # a line without end
        self.start(200, Content_Type="text/event-stream")
        while True:
            self.wfile.write(b"data: " + b"x" * 65536)

    def do_flood(self, n):  # a header without end
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X-Header: " + b"x" * 200 + b"\r\n")

    def do_after(self, n):  # goes on after [DONE]
        self.good()
        while True:
            self.wfile.write(b'data: {"choices":[{"delta":{"content":"more"}}]}\n\n')

    def do_stall(self, n):
        if n > 1:
            return self.good()
        self.start(200, Content_Type="text/event-stream")
        self.wfile.write(self.events()[0])
        self.wfile.flush()
        time.sleep(30)

    def do_drip(self, n):  # never quiet, never done
        self.start(200, Content_Type="text/event-stream")
        for _ in range(300):
            self.wfile.write(b": wait\n")
            self.wfile.flush()
            time.sleep(0.1)

    def do_busy(self, n): self.error(429, "slow down", Retry_After=1) if n == 1 else self.good()
    def do_busy_date(self, n): self.error(429, "slow down", Retry_After=formatdate(time.time() + 2, usegmt=True)) if n == 1 else self.good()
    def do_busy_long(self, n): self.error(429, "slow down", Retry_After=86400)
    def do_busy_always(self, n): self.error(429, "slow down")
    def do_ill(self, n): self.start(500, Content_Length=0) if n % 2 else self.good()
    def do_ill_always(self, n): self.error(503, "\x1b]52;c;aGk=\x07down")

    def do_status(self, n):  # status/NUMBER/...: a page without end
        self.start(int(self.path.split("/")[2]), Content_Type="text/html")
        while True:
            self.wfile.write(b"<p>\x1b[2J</p>" * 1000)

    def do_in_stream(self, n):  # an error where an answer should be
        self.start(200, Content_Type="text/event-stream")
        self.wfile.write(b'data: {"error":{"message":"overloaded \xc3\xa9"}}\n\n')

    def do_moved(self, n): self.start(307, Location=f"http://127.0.0.1:{ports[1]}/good/v1/chat/completions?secret=1", Content_Length=0)

    def do_secret(self, n):
        key = self.headers.get("Authorization", "")
        self.good() if key == "Bearer s3cret-k3y-0123" else self.error(401, "Incorrect API key provided: " + key[7:20] + "*** or " + key[7:])

    def do_echo(self, n): self.good(text="LABEL: " + self.headers.get("Authorization", "")[7:])

    def do_picky(self, n):  # knows neither of these; says so one at a time
        for word in ("max_tokens", "stream_options", "temperature"):
            if word in self.asked:
                return self.error(400, {"max_tokens": "use 'max_completion_tokens'"}.get(word, f"unknown member {word}"))
        if "logprobs" in self.asked:
            return self.error(400, "logprobs are not given")
        self.good()

    def do_bare(self, n):  # answers without log-probabilities, whatever is asked
        self.asked.pop("logprobs", None)
        self.good()

    def do_babble(self, n):  # a label, and then nothing that could be read as a judgement
        self.good(**({} if "Texts:" in self.asked["messages"][-1]["content"] else {"text": "Well, it depends. [1, 0"}))


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


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
