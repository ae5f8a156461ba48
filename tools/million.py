#!/usr/bin/env python3
"""Measures work with a dictionary of a million features (tools/make_million.py), on a real model of its width: seconds and peak memory of each command, and of the
workbench in a terminal of 80 x 24: its first screen, the list of features, a filter.

usage: million.py ESPALIER MODEL.gguf DICTIONARY HOME

HOME is a folder of its own for hashes and labels. The first command of a new HOME computes the hash of the file and takes the labels in; both are told apart.
"""
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import fcntl
import termios
import time

espalier, model, dictionary, home = sys.argv[1:5]
os.makedirs(home, exist_ok=True)
TEXT = " ".join(f"In the year {1800 + i} the river rose {i % 7} feet and fell again." for i in range(14))  # about 256 tokens


def put(name, text):
    path = os.path.join(home, name)
    with open(path, "w") as f:
        f.write(text)
    return path


def command(what, *args):
    """Runs it as a child of a child, so that the peak is its own."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        p = subprocess.run([espalier, *args, "--home", home, "--json", "--quiet"], stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"{what:44s} {seconds:7.2f} s {peak // 1024:6d} MB" + (f"  exit {p.returncode}" if p.returncode else ""), flush=True)
        os._exit(p.returncode != 0)
    return os.waitpid(pid, 0)[1] == 0


def workbench():
    began = time.monotonic()
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", LANG="C.UTF-8")
        os.execv(espalier, [espalier, "--model", model, "--dictionary", dictionary, "--home", home])
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen = bytearray()

    def until(pattern, limit=120):
        start = time.monotonic()
        while time.monotonic() - start < limit:
            if re.search(pattern, seen):
                return time.monotonic()
            if select.select([fd], [], [], 0.02)[0]:
                seen.extend(os.read(fd, 65536))
        raise SystemExit(f"the workbench did not show {pattern!r}:\n{seen[-2000:].decode(errors='replace')}")

    def press(keys):
        seen.clear()
        os.write(fd, keys)
        return time.monotonic()

    def row(what, seconds):
        with open(f"/proc/{pid}/status") as f:
            peak = int(re.search(r"VmHWM:\s+(\d+)", f.read()).group(1))
        print(f"{what:44s} {seconds:7.2f} s {peak // 1024:6d} MB", flush=True)

    row("workbench: first screen", until(rb"F1") - began)
    while True:  # the list has rows once the dictionary is there
        at = press(b"\x1bOQ")
        try:
            until(rb"1,?048,?57[56]", 2)
            break
        except SystemExit:
            if time.monotonic() - began > 120:
                raise
    row("workbench: the list of features, from the start", time.monotonic() - began)
    at = press(b"/animals")
    row("workbench: filter, after 8 keys", until(rb"animals .*animals|animals\S* [a-z]+ [a-z]+", 60) - at)
    at = press(b"\r\r")
    time.sleep(3)
    row("workbench: a feature opened (waits 3 s)", 3)
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)


m = ["--model", model, "--dictionary", dictionary]
command("open, hash computed", "dictionary", "info", dictionary)
command("labels taken in, features made searchable", "label", "export", *m) and command("the same again", "label", "export", *m)
command("open", "features", "list", "--limit", "1", *m)
command("filter", "features", "search", "animals", *m)
command("show", "features", "show", "4321", *m)
command("encode about 256 tokens", "encode", put("text.txt", TEXT), "--top", "5", *m)
command("contrast two texts with two", "features", "contrast", put("a.txt", "the old house\nthe old school by the sea\n"), put("b.txt", "you and me\nyou and us\n"), *m)
workbench()
