#!/usr/bin/env python3
"""llama.cpp's side of `espalier bench --against llama.cpp`, which runs this and asks for a run at a time so that the two sides take
turns on the machine.

A line of JSON in, a line of JSON out. First {"model": FILE.gguf, "threads", "n_ctx", "prompt": [ids], "tokens": [ids]}; answer: its
version. Then for each line "run" the seconds of the prompt in one go and of the tokens after it one at a time, and for each line "load"
the seconds from opening the file to the logits of one token. A line {"error"} ends it. Everything goes through llama.h's own functions:
none of the Python package's copying of logits is timed.

Needs llama-cpp-python.
"""
import ctypes
import json
import os
import sys
import time


def main():
    import llama_cpp as l
    say = lambda value: print(json.dumps(value), flush=True)
    quiet = l.llama_log_callback(lambda level, text, user: None)
    l.llama_log_set(quiet, ctypes.c_void_p(0))
    l.llama_backend_init()
    ask = json.loads(sys.stdin.readline())
    array = lambda ids: (l.llama_token * len(ids))(*ids)
    prompt, tokens = array(ask["prompt"]), [array([t]) for t in ask["tokens"]]

    def open_all():
        mp = l.llama_model_default_params()
        mp.n_gpu_layers = 0
        model = l.llama_model_load_from_file(ask["model"].encode(), mp)
        if not model:
            raise RuntimeError("llama.cpp cannot load " + ask["model"])
        cp = l.llama_context_default_params()
        cp.n_ctx = ask["n_ctx"]
        cp.n_batch = cp.n_ubatch = max(512, len(ask["prompt"]))
        cp.n_threads = cp.n_threads_batch = ask["threads"]
        context = l.llama_init_from_model(model, cp)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context")
        return model, context

    def feed(context, ids):
        if l.llama_decode(context, l.llama_batch_get_one(ids, len(ids))) != 0:
            raise RuntimeError("llama.cpp's decode failed")
        l.llama_synchronize(context)
        l.llama_get_logits_ith(context, -1)

    model, context = open_all()
    say({"llama.cpp": l.__version__})
    for line in sys.stdin:
        what = json.loads(line)
        if what == "load":
            began = time.perf_counter()
            other, fresh = open_all()
            feed(fresh, tokens[0])
            took = time.perf_counter() - began
            l.llama_free(fresh)
            l.llama_model_free(other)
            say({"load": took})
        else:
            l.llama_memory_clear(l.llama_get_memory(context), True)
            began = time.perf_counter()
            feed(context, prompt)
            middle = time.perf_counter()
            for t in tokens:
                feed(context, t)
            say({"prefill": middle - began, "decode": time.perf_counter() - middle})


try:
    main()
except ImportError as e:
    print(json.dumps({"error": f"it needs llama-cpp-python: {e}"}), flush=True)
except Exception as e:  # one line for the user, not a traceback
    print(json.dumps({"error": f"{type(e).__name__}: {e}"}), flush=True)
