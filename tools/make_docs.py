#!/usr/bin/env python3
"""Writes docs/espalier.1 and docs/espalier.bash from what the program's own --help says.

  tools/make_docs.py build/espalier docs          tools/make_docs.py build/espalier --check docs
"""
import os
import re
import subprocess
import sys


def run(program, *words):
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
    return subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True, env=environment).stdout


def commands_of(text):
    """Names and summaries in a help text's list of commands."""
    return re.findall(r"^  ([a-z][a-z-]*) +(\S.*)$", text.split("\nOptions of every command")[0].split("\nespalier ")[0], re.M)


def options_of(text, heading):
    part = text.partition("\n" + heading + ":\n")[2].split("\n\n")[0]
    return [(m[0], m[1] or "", m[2]) for m in re.findall(r"^  (--[a-z0-9-]+)(?: ([^ ]+))? +(.*)$", part, re.M)]


def collect(program):
    """[(words, help text)] of every command that takes options."""
    out = []
    for name, _ in commands_of(run(program)):
        text = run(program, name)
        if text.startswith(f"Usage: espalier {name} COMMAND"):
            out += [((name, sub), run(program, name, sub)) for sub, _ in commands_of(text)]
        else:
            out.append(((name,), text))
    return out


def roff(s):
    s = s.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in s.split("\n"))


def manual(program, helps):
    out = ['.TH ESPALIER 1 "" "espalier" "User Commands"', ".SH NAME", "espalier \\- browse a language model's features and adapt it along chosen ones", ".SH SYNOPSIS",
           ".B espalier", "[OPTIONS] [COMMAND [ARGUMENTS]]", ".SH DESCRIPTION",
           roff("Without a command, on a terminal, the workbench opens. Every command has --help with examples, and --json for programs."), ".SH OPTIONS OF EVERY COMMAND"]
    for name, arg, what in options_of(helps[0][1], "For every command"):
        out += [".TP", f".B {roff(name)} " + (f"\\fI{roff(arg)}\\fR" if arg else ""), roff(what)]
    out.append(".SH COMMANDS")
    for words, text in helps:
        usage = text.split("\n", 1)[0][len("Usage: espalier "):]
        what = text.split("\n\n")[1]
        out += [f".SS {roff(usage)}", roff(what.replace("\n", " "))]
        for name, arg, meaning in options_of(text, "Options"):
            out += [".TP", f".B {roff(name)} " + (f"\\fI{roff(arg)}\\fR" if arg else ""), roff(meaning)]
        examples = text.partition("\nExamples:\n")[2].rstrip("\n")
        if examples:
            out += [".PP", "Examples:", ".nf", roff(examples), ".fi"]
    out += [".SH EXIT STATUS", "0 done, 1 failed, 2 wrong usage, 130 interrupted.", ".SH FILES",
            ".TP", roff("~/.local/share/espalier"), roff("models, dictionaries and the workspace; --home, ESPALIER_HOME and XDG_DATA_HOME change it"),
            ".TP", roff("~/.config/espalier/config.ini"), "settings", ".SH ENVIRONMENT",
            roff("ESPALIER_HOME, XDG_DATA_HOME, XDG_CONFIG_HOME, HOME, NO_COLOR, VISUAL, EDITOR, and the locale; for fetch HF_TOKEN, HF_ENDPOINT, SSL_CERT_FILE and curl's proxy variables.")]
    return "\n".join(out) + "\n"


def completion(program, helps):
    tops, subs, opts = [], {}, {}
    for words, text in helps:
        if words[0] not in tops:
            tops.append(words[0])
        if len(words) == 2:
            subs.setdefault(words[0], []).append(words[1])
        opts[" ".join(words)] = " ".join(o[0] for o in options_of(text, "Options"))
    every = " ".join(o[0] for o in options_of(helps[0][1], "For every command")) + " --help"
    lines = ["# bash completion for espalier: source this file", "_espalier() {", '  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]-} choices=',
             '  case $COMP_CWORD/$command in', f'    1/*) choices="{" ".join(tops)} {every} --version" ;;']
    lines += [f'    2/{top}) choices="{" ".join(names)} --help" ;;' for top, names in subs.items()]
    lines += ["    *)", f'      choices="{every}"', '      case "$command ${COMP_WORDS[2]-}" in']
    for key, value in opts.items():
        if value:
            lines.append(f'        "{key}{"" if " " in key else " "}"*) choices+=" {value}" ;;')
    lines += ["      esac ;;", "  esac", '  if [[ $word == -* || $COMP_CWORD -eq 1 || ( $COMP_CWORD -eq 2 && $choices != --* ) ]]; then',
              '    mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word")', "  else", '    mapfile -t COMPREPLY < <(compgen -f -- "$word")', "  fi", "}",
              "complete -o filenames -F _espalier espalier"]
    return "\n".join(lines) + "\n"


def main():
    arguments = [a for a in sys.argv[1:] if a != "--check"]
    if len(arguments) != 2:
        sys.exit(__doc__)
    program, folder = arguments
    helps = collect(os.path.abspath(program))
    bad = 0
    for name, text in (("espalier.1", manual(program, helps)), ("espalier.bash", completion(program, helps))):
        path = os.path.join(folder, name)
        if "--check" in sys.argv:
            if not os.path.exists(path) or open(path, encoding="utf-8").read() != text:
                print(f"{path} is not what the program says of itself: run tools/make_docs.py build/espalier docs", file=sys.stderr)
                bad = 1
        else:
            os.makedirs(folder, exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
    sys.exit(bad)


if __name__ == "__main__":
    main()
