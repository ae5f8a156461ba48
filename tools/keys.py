#!/usr/bin/env python3
"""From a key to the screen in the real workbench, in a terminal of its own: with nothing else going on, while it writes a reply, and while it writes one
and learns from a correction at the same time. Needs pyte (a terminal emulator).

usage: keys.py ESPALIER MODEL.gguf DICTIONARY HOME [--size 80x24] [--keys 150]

HOME is a new folder: what learning measures once for a model is then measured while the keys are pressed. A key counts from its write to the moment when the
terminal's screen shows the row it goes to. The list is that of the features, walked upwards from its end (key Up), a page at a time (Page Up), and a
feature's dashboard opened and left.
"""
import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

import pyte

p = argparse.ArgumentParser()
p.add_argument("espalier"), p.add_argument("model"), p.add_argument("dictionary"), p.add_argument("home")
p.add_argument("--size", default="80x24"), p.add_argument("--keys", type=int, default=150)
o = p.parse_args()
columns, lines = (int(n) for n in o.size.split("x"))
os.makedirs(o.home, exist_ok=True)
pid, fd = pty.fork()
if pid == 0:
    os.environ.update(TERM="xterm-256color", LANG="C.UTF-8", LINES=str(lines), COLUMNS=str(columns))
    os.execv(o.espalier, [o.espalier, "--model", o.model, "--dictionary", o.dictionary, "--home", o.home])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
os.kill(pid, signal.SIGWINCH)
screen = pyte.Screen(columns, lines)
stream = pyte.ByteStream(screen)
UP, PAGE_UP, END = b"\x1b[A", b"\x1b[5~", b"\x1b[F"


def read(seconds):
    """Feeds what comes within that time to the terminal; whether anything came."""
    if not select.select([fd], [], [], seconds)[0]:
        return False
    try:
        stream.feed(os.read(fd, 1 << 16))
    except OSError:
        sys.exit("the workbench ended")
    return True


def shown():
    return "\n".join(screen.display)


def until(what, limit=60):
    end = time.monotonic() + limit
    while not what():
        if time.monotonic() > end:
            sys.exit("the workbench did not come to it:\n" + shown())
        read(0.02)


def press(key):
    os.write(fd, key)


def settle(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        read(0.05)


def selected():
    """The number of the selected feature: that of the row with a background of its own, or in reverse."""
    for y in range(2, lines - 2):
        cell = screen.buffer[y][5]
        if cell.reverse or cell.bg != "default":
            m = re.match(r"\s*\W?\s*(\d+)", screen.display[y])
            if m:
                return int(m.group(1))
    return None


def status():
    return screen.display[lines - 2]


def timed(key, done, limit=5):
    while read(0):
        pass
    began = time.monotonic()
    press(key)
    while not done():
        if time.monotonic() - began > limit:
            sys.exit(f"no answer to the key {key!r}:\n" + shown())
        read(0.001)
    return 1e3 * (time.monotonic() - began)


def walk(n):
    """Presses n keys in the list of features. Times of Esc apart: a terminal program waits after it, for it may begin another key."""
    press(b"\x1bOQ")
    until(lambda: "features of" in shown())
    press(END)
    until(lambda: selected() is not None)
    settle(0.2)
    keys, escapes, learning = [], [], 0
    for i in range(n):
        at = selected()
        if i % 10 == 9:
            keys.append(timed(b"\r", lambda: "Esc" in shown() and selected() is None))
            escapes.append(timed(b"\x1b", lambda: selected() == at))
        else:
            keys.append(timed(PAGE_UP if i % 3 == 2 else UP, lambda: selected() not in (at, None)))
        learning += "◐" in status()
        settle(0.02)
    return keys, escapes, learning == n


def tell(what, keys, escapes):
    keys.sort()
    print(f"{what:28s} median {keys[len(keys) // 2]:5.1f} ms, p99 {keys[min(len(keys) - 1, int(0.99 * len(keys)))]:5.1f}, longest {keys[-1]:5.1f} ({len(keys)} keys); "
          f"Esc at most {max(escapes):5.1f}", flush=True)


def during(what, correction):
    """Walks of 20 keys, each during a reply that goes on beyond it (and, with a correction, while learning does), until there are enough of them."""
    keys, escapes = [], []
    for turn in range(60):
        if len(keys) >= o.keys:
            break
        if correction and "◐" not in status():
            say("Say hello.")
            settle(3)
            press(b"\x03")
            settle(0.5)
            press(b"\x05")
            settle(0.5)
            press(f"\x18Hello, my good friend number {turn}. How may I serve you on this fine day?\r".encode())
            settle(0.3)
        say(STORY)
        settle(0.5)
        k, e, learned = walk(20)
        press(b"\x1bOP")
        settle(0.2)
        if "Ctrl-C" in shown() and (learned or not correction):
            keys += k
            escapes += e
        press(b"\x03")
        settle(0.5)
    if keys:
        tell(what, keys, escapes)
    else:
        print(f"{what}: no reply lasted long enough")


def say(text):
    press(b"\x1bOP")
    settle(0.3)
    press(text.encode() + b"\r")


STORY = "Write a very long story about a fox, with many chapters."
try:
    until(lambda: "F1" in shown())
    settle(6)
    say("Say hello.")
    settle(8)
    press(b"\x03")
    settle(1)
    tell("nothing else", *walk(o.keys)[:2])
    during("while it writes", False)
    during("while it writes and learns", True)
finally:
    os.kill(pid, signal.SIGTERM)
