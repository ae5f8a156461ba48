#!/usr/bin/env python3
"""Makes the tasks of `espalier eval adapt` from public data, one JSON object a line: messages, preferred, rejected, set (pool, dev, held, off).

  tools/make_pairs.py TASK DATA > TASK.jsonl        DATA: the unpacked data folder; names as below

  brevity      the first sentence of an answer, preferred to three or four of them   (general/general.train.jsonl: GPTeacher, MIT; oasst, Apache-2.0)
  politeness   the polite answer to the rude one                                     (assistant/polite_vs_impolite_pairs.jsonl, Apache-2.0)
  directness   the plain answer to one with an opener and hedges put in              (its neutral answers)
  formality    the plain or expanded answer to one with contractions and slang       (its neutral answers)
  typehints    a function with annotations and a docstring to one without            (coding/mbpp.jsonl, CC-BY-4.0; types from its tests)
  snakecase    snake_case names to camelCase ones                                    (coding/mbpp.jsonl)
  guards       guard clauses to nested ifs                                           (written here)
  concise      concise to verbose, both by models                                    (assistant_nc/concise_vs_verbose.jsonl, CC-BY-NC: not shipped)
  bluntness    impolite to polite                                                    (assistant/polite_vs_impolite_pairs.jsonl)
  neutral      documents and assistant's turns that should stay as they are          (general/general.dev.jsonl, CC0, MIT, Apache-2.0 and CC-BY rows)
  choices      multiple-choice items and minimal pairs                               (retention/: ARC-Easy, PIQA, LAMBADA, BLiMP)

The same data gives the same file. The off set holds pairs that differ in the trait where it should not matter: answers in code for the traits of prose,
prose and JavaScript for those of Python.
"""
import ast
import json
import keyword
import os
import random
import re
import sys

SIZES = {"held": 40, "dev": 16, "off": 24, "pool": 152}


def rows(data, path):
    with open(os.path.join(data, path), encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def words(s):
    return len(s.split())


def differ(a, b):
    return len(set(a.lower().split()) ^ set(b.lower().split()))


def pair(ask, preferred, rejected):
    return {"messages": [{"role": "user", "content": ask}], "preferred": preferred, "rejected": rejected}


# ---- prose ------------------------------------------------------------------------------------------------------------------------------


def polite_rows(data):
    """[(question, neutral, polite or None, rude or None)] without repeated questions."""
    out, seen = [], set()
    for r in rows(data, "assistant/polite_vs_impolite_pairs.jsonl"):
        ask = r["instruction"].strip() + ("\n\n" + r["input"].strip() if r.get("input", "").strip() else "")
        if ask in seen or not r["output"].strip():
            continue
        seen.add(ask)
        SMALL.update(re.findall(r"(?<![\w.])[a-z']+", r["output"]))
        neutral, chosen, rejected = r["output"].strip(), r["chosen"].strip(), r["rejected"].strip()
        out.append((ask, neutral, chosen if chosen != neutral else None, rejected if rejected != neutral else None))
    return out


SMALL = set()  # words that the neutral answers have in small letters: at a sentence's beginning they may be made small


def first_lower(s):
    """Begins with a small letter where that is safe: names and I stay."""
    head = re.match(r"[A-Za-z']*", s).group(0)
    return s[0].lower() + s[1:] if head.lower() in SMALL and head not in ("I", "I'm", "I'd") else s


POLITE = re.compile(r"happy|glad|kindly|please|thank|may i|if i may|would you|pleasure|certainly|apolog|sorry|delight|wonderful|of course|could be considered|gently|allow me", re.I)


def politeness(data):
    out = []
    for ask, neutral, polite, rude in polite_rows(data):
        good, bad = polite or neutral, rude or neutral
        if words(ask) <= 45 and max(words(good), words(bad)) <= 45 and differ(good, bad) >= 3 and (rude or POLITE.search(good)):
            out.append(pair(ask, good, bad))
    return out


def bluntness(data):
    return [pair(ask, rude or neutral, polite or neutral) for ask, neutral, polite, rude in polite_rows(data) if differ(rude or neutral, polite or neutral) >= 2]


def split_sentences(s):
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", s)


OPENERS = ["Sure! I'd be happy to help with that.", "Great question!", "Of course! Let me help you with that.", "Thank you for asking!", "Certainly! I'd be glad to help.",
           "That's a great question!", "Absolutely! Happy to help.", "Sure thing! Thanks for reaching out.", "I'd be happy to help!", "What a good question!"]
HEDGES = ["I think", "I believe", "It seems to me that", "I would say that, perhaps,", "As far as I know,", "I'm not entirely sure, but I think", "If I'm not mistaken,",
          "In my opinion,", "It could be that", "I guess"]
TAILS = ["but I might be wrong.", "although it may depend on the context.", "more or less.", "I suppose.", "but there could be other views.", "at least as far as I can tell."]
VERBS = [(" is ", " is probably "), (" are ", " are probably "), (" was ", " was possibly "), (" can ", " can perhaps "), (" will ", " might "), (" has ", " perhaps has "),
         (" have ", " perhaps have ")]


def hedge(text, r):
    parts = split_sentences(text)
    first = parts[0]
    if r.random() < 0.6:
        for old, new in VERBS:
            if old in first and "\"" not in first.split(old)[0]:
                first = first.replace(old, new, 1)
                break
    if r.random() < 0.85:
        first = r.choice(HEDGES) + " " + first_lower(first)
    if first.endswith(".") and r.random() < 0.5:
        first = first[:-1] + ", " + r.choice(TAILS)
    return " ".join(([r.choice(OPENERS)] if r.random() < 0.8 else []) + [first] + parts[1:])


def directness(data):
    out, r = [], random.Random(11)
    for ask, neutral, _, _ in polite_rows(data):
        hedged = hedge(neutral, r)
        if words(ask) <= 45 and 5 <= words(neutral) <= 32 and neutral[-1] in ".!" and differ(neutral, hedged) >= 4 and "\n" not in neutral:
            out.append(pair(ask, neutral, hedged))
    return out


EXPAND = [("isn't", "is not"), ("aren't", "are not"), ("don't", "do not"), ("doesn't", "does not"), ("can't", "cannot"), ("won't", "will not"), ("didn't", "did not"), ("it's", "it is"),
          ("It's", "It is"), ("that's", "that is"), ("That's", "That is"), ("there's", "there is"), ("There's", "There is"), ("I'm", "I am"), ("you're", "you are"), ("You're", "You are"),
          ("they're", "they are"), ("They're", "They are"), ("we're", "we are"), ("you'll", "you will"), ("I'd", "I would"), ("couldn't", "could not"), ("wouldn't", "would not"),
          ("shouldn't", "should not"), ("I've", "I have"), ("let's", "let us"), ("Let's", "Let us"), ("wasn't", "was not")]
CASUAL = [("approximately", "about"), ("very", "super"), ("many", "tons of"), ("several", "a bunch of"), ("large", "huge"), ("children", "kids"), ("however", "but"), ("However", "But"),
          ("therefore", "so"), ("in order to", "to"), ("such as", "like"), ("obtain", "get"), ("require", "need"), ("requires", "needs"), ("individuals", "folks"), ("people", "folks"),
          ("person", "guy"), ("commonly", "usually"), ("excellent", "awesome"), ("good", "cool"), ("important", "big"), ("something", "stuff"), ("items", "stuff"), ("going to", "gonna"),
          ("want to", "wanna"), ("have to", "gotta"), ("incorrect", "off"), ("used to", "used to"), ("method", "way"), ("purchase", "buy"), ("difficult", "tough"), ("quickly", "fast")]
CONTRACT = [(" is not ", " isn't "), (" are not ", " aren't "), (" do not ", " don't "), (" does not ", " doesn't "), (" cannot ", " can't "), (" can not ", " can't "),
            (" will not ", " won't "), (" did not ", " didn't "), ("It is ", "It's "), (" it is ", " it's "), ("That is ", "That's "), ("There is ", "There's "), ("They are ", "They're "),
            ("You are ", "You're "), (" you are ", " you're "), ("I am ", "I'm "), ("You will ", "You'll "), ("We are ", "We're ")]
NOUN_IS = re.compile(r"^(The [a-z]+(?: [a-z]+)?|[A-Z][a-z]+) is ")
CASUAL_OPEN = ["Yeah, so", "Hey,", "OK so", "So yeah,", "Oh,", "Yep,", "Alright,", "Easy one,", "Um,"]
CASUAL_TAIL = [", you know?", ", no biggie.", ", basically.", ", pretty much.", ", dude.", ", lol.", ", cool?", ", and that's it, man.", ", gotta love it."]


def replace_word(s, old, new):
    return re.sub(r"(?<![\w'\"])" + re.escape(old) + r"(?![\w'\"])", new, s)


def formal(s):
    for short, full in EXPAND:
        s = replace_word(s, short, full)
    return s


def casual(s, r):
    for old, new in CASUAL:
        s = replace_word(s, old, new)
    s = NOUN_IS.sub(lambda m: m.group(1) + "'s ", s)
    for full, short in CONTRACT:
        s = s.replace(full, short)
    opened = r.random() < 0.75 or not s.endswith(".")
    s = r.choice(CASUAL_OPEN) + " " + first_lower(s) if opened else s
    if s.endswith(".") and (not opened or r.random() < 0.6):
        s = s[:-1] + r.choice(CASUAL_TAIL)
    return s


FORMAL_OPEN = ["In response to your enquiry,", "It may be stated that", "Please note that", "One may observe that", "For your information,"]


def formality(data):
    out, r = [], random.Random(12)
    for ask, neutral, _, _ in polite_rows(data):
        good = formal(neutral)
        if r.random() < 0.35:
            good = r.choice(FORMAL_OPEN) + " " + first_lower(good)
        bad = casual(neutral, r)
        if words(ask) <= 45 and 6 <= words(neutral) <= 35 and neutral[-1] in ".!" and differ(good, bad) >= 4 and "\n" not in neutral and words(bad) >= words(good) - 6:
            out.append(pair(ask, good, bad))
    return out


def brevity(data):
    out, seen = [], set()
    for r in rows(data, "general/general.train.jsonl"):
        if r["src"] not in ("gpteacher/roleplay", "oasst-en100", "arena-hard-v0.1/gpt-4-0314") or r["text"].count("User:") != 1:
            continue
        ask, _, reply = r["text"].partition("\n\nAssistant:")
        ask, reply = ask.replace("User:", "", 1).strip(), reply.strip()
        parts = split_sentences(reply.split("\n")[0])
        if words(ask) > 45 or ask in seen or len(parts) < 3 or not 6 <= words(parts[0]) <= 28 or not parts[0].endswith(".") or "```" in reply or "\\n" in reply or parts[0][0].islower():
            continue
        long = parts[0]
        for p in parts[1:]:
            if words(long) + words(p) > 58:
                break
            long += " " + p
        if words(long) < words(parts[0]) + 18 or words(long) > 58:
            continue
        seen.add(ask)
        out.append(pair(ask, parts[0], long))
    return out


def concise(data):
    out, seen = [], set()
    for r in rows(data, "assistant_nc/concise_vs_verbose.jsonl"):
        ask, good, bad = (r[k].strip() for k in ("instruction", "concise", "verbose"))
        if ask and good and bad and ask not in seen and differ(good, bad) >= 2 and words(good) <= 35 and words(bad) >= 1.5 * words(good):
            seen.add(ask)
            out.append(pair(ask, good, bad))
    return out


# ---- Python ---------------------------------------------------------------------------------------------------------------------------------


def fenced(code, language="python"):
    return f"```{language}\n{code.strip()}\n```"


def functions(data):
    """[(request, tests, module)] of MBPP's solutions that are one short function."""
    out = []
    for r in rows(data, "coding/mbpp.jsonl"):
        try:
            tree = ast.parse(r["code"].replace("\r", "").expandtabs(4))
        except SyntaxError:
            continue
        if len(tree.body) == 1 and isinstance(tree.body[0], ast.FunctionDef) and len(ast.unparse(tree)) <= 260:
            out.append((re.sub(r"\s+", " ", r["text"]).strip(), r["test_list"], tree))
    return out


def parts_of(name):
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [p.lower() for p in name.split("_") if p]


LONGER = {"list1": "first_list", "list2": "second_list", "l1": "first_list", "l2": "second_list", "lst": "item_list", "lists": "nested_lists", "str1": "first_text", "str2": "second_text",
          "string": "input_text", "str": "input_text", "s": "input_text", "text": "input_text", "n": "given_count", "num": "given_number", "no": "given_number", "nums": "number_list", "arr": "value_list",
          "array": "value_list", "res": "final_result", "result": "final_result", "sum": "running_total", "total": "running_total", "count": "match_count", "max": "largest_value",
          "min": "smallest_value", "x": "first_value", "y": "second_value", "a": "first_number", "b": "second_number", "tup": "input_tuple", "tuples": "tuple_list", "test_tup": "input_tuple",
          "test_list": "input_list", "items": "item_list", "k": "key_value", "temp": "temp_value", "dict": "word_counts", "d": "value_map", "r": "circle_radius", "h": "total_height",
          "l": "side_length", "ans": "final_answer", "matrix": "number_matrix", "word": "current_word", "words": "word_list", "number": "given_number", "m": "row_count", "i": "item_index",
          "j": "inner_index", "digit": "last_digit", "char": "current_char", "c": "current_char", "p": "start_price", "t": "total_time", "side": "side_length"}


class Rename(ast.NodeTransformer):
    def __init__(self, names):
        self.names = names

    def visit_Name(self, node):
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node):
        node.arg = self.names.get(node.arg, node.arg)
        return node

    def visit_FunctionDef(self, node):
        node.name = self.names.get(node.name, node.name)
        return self.generic_visit(node)


def renamed(tree, style):
    """The function with its own names in a style, those of one word made longer where that is known; None where two would collide."""
    tree = ast.parse(ast.unparse(tree))
    own = {tree.body[0].name}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, (ast.Lambda, ast.Import, ast.ImportFrom)) or (isinstance(node, ast.keyword) and node.arg):
            return None
    names = {}
    for name in sorted(own):
        parts = parts_of(LONGER.get(name, name)) or ["_"]
        made = "_".join(parts) if style == "snake" else parts[0] + "".join(p[:1].upper() + p[1:] for p in parts[1:])
        if keyword.iskeyword(made) or made in names.values():
            return None
        names[name] = made
    free = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - own
    if free & set(names.values()):
        return None
    code = ast.unparse(Rename(names).visit(tree))
    return code if sum("_" in n or re.search("[a-z][A-Z]", n) is not None for n in names.values()) >= 2 else None


def snakecase(data):
    out = []
    for ask, _, tree in functions(data):
        good, bad = renamed(tree, "snake"), renamed(tree, "camel")
        if good and bad and good != bad and len(good) <= 250:
            out.append(pair(ask, fenced(good), fenced(bad)))
    return out


def type_of(value):
    if isinstance(value, (bool, int, float, str)) or value is None:
        return type(value).__name__ if value is not None else "None"
    if isinstance(value, (list, set, tuple)) and value:
        kinds = {type_of(v) for v in value}
        inner = kinds.pop() if len(kinds) == 1 and all(not isinstance(v, (list, tuple, set, dict)) for v in value) else None
        if isinstance(value, tuple):
            return f"tuple[{inner}, ...]" if inner else "tuple"
        return f"{type(value).__name__}[{inner}]" if inner else type(value).__name__
    return type(value).__name__


def signature(tests, name):
    """Types of the arguments and of what comes back, where all tests agree."""
    seen = []
    for test in tests:
        try:
            check = ast.parse(test).body[0].test
            call = check.left
            if not isinstance(check, ast.Compare) or call.func.id != name or call.keywords:
                return None
            seen.append(([type_of(ast.literal_eval(a)) for a in call.args], type_of(ast.literal_eval(check.comparators[0]))))
        except (AttributeError, ValueError, SyntaxError, TypeError, IndexError):
            return None
    if not seen or any(len(s[0]) != len(seen[0][0]) for s in seen):
        return None

    def agree(kinds):
        kinds = set(kinds)
        return "float" if kinds == {"int", "float"} else kinds.pop() if len(kinds) == 1 else None

    arguments = [agree(s[0][i] for s in seen) for i in range(len(seen[0][0]))]
    returns = agree(s[1] for s in seen)
    return None if None in arguments or returns is None else (arguments, returns)


def typehints(data):
    out = []
    for ask, tests, tree in functions(data):
        function = tree.body[0]
        types = signature(tests, function.name)
        if not types or len(types[0]) != len(function.args.args) or function.args.defaults or function.args.vararg or len(ast.unparse(tree)) > 190:
            continue
        bad = ast.unparse(tree)
        match = re.match(r"Write a (?:python )?function (?:to|that|which) (.+?)\.?$", ask, re.I)
        if not match or words(match.group(1)) > 14:
            continue
        what = match.group(1)
        good = ast.parse(bad).body[0]
        for a, kind in zip(good.args.args, types[0]):
            a.annotation = ast.parse(kind, mode="eval").body
        good.returns = ast.parse(types[1], mode="eval").body
        good.body.insert(0, ast.Expr(ast.Constant(what[0].upper() + what[1:] + ".")))
        out.append(pair(ask, fenced(ast.unparse(ast.fix_missing_locations(good))), fenced(bad)))
    return out


GUARD = [  # noun, conditions as (test, its negation, words), actions as (verb phrase, expression)
    ("order", [("order", "not order", "exists"), ("order.paid", "not order.paid", "is paid"), ("order.items", "not order.items", "has items"), ("order.address", "not order.address", "has an address"),
               ("order.total > 0", "order.total <= 0", "has a positive total")],
     [("ship_order", "ships an order", "order.ship()"), ("order_total", "returns an order's total with tax", "order.total * 1.2"), ("close_order", "closes an order", "order.close()"),
      ("label_order", "prints the label of an order", "order.print_label()")]),
    ("user", [("user", "not user", "exists"), ("user.active", "not user.active", "is active"), ("user.email", "not user.email", "has an email"), ("user.age >= 18", "user.age < 18", "is an adult"),
              ("user.verified", "not user.verified", "is verified")],
     [("greet_user", "returns a greeting for a user", "'Hello ' + user.name"), ("notify_user", "sends a message to a user", "user.send('News')"), ("log_in", "logs a user in", "user.login()"),
      ("user_badge", "returns a user's badge", "user.badge")]),
    ("path", [("path", "not path", "is given"), ("path.exists()", "not path.exists()", "exists"), ("path.is_file()", "not path.is_file()", "is a file"),
              ("path.suffix == '.txt'", "path.suffix != '.txt'", "is a text file"), ("path.stat().st_size", "not path.stat().st_size", "is not empty")],
     [("read_path", "reads the text of a path", "path.read_text()"), ("count_lines", "counts the lines of a path", "len(path.read_text().splitlines())"), ("load_words", "returns the words of a path", "path.read_text().split()"),
      ("first_line", "returns the first line of a path", "path.read_text().splitlines()[0]")]),
    ("number", [("number is not None", "number is None", "is given"), ("number > 0", "number <= 0", "is positive"), ("number % 2 == 0", "number % 2 != 0", "is even"),
                ("number < 100", "number >= 100", "is below 100"), ("number % 5 == 0", "number % 5 != 0", "can be divided by 5")],
     [("half_number", "halves a number", "number // 2"), ("square_number", "squares a number", "number ** 2"), ("number_text", "returns a number as text", "str(number)"), ("root_number", "returns the root of a number", "number ** 0.5")]),
    ("text", [("text", "not text", "is not empty"), ("text.isalpha()", "not text.isalpha()", "has only letters"), ("len(text) > 3", "len(text) <= 3", "is longer than 3"),
              ("text[0].isupper()", "not text[0].isupper()", "starts with a capital"), ("' ' not in text", "' ' in text", "has no spaces")],
     [("reverse_text", "reverses a text", "text[::-1]"), ("shout_text", "returns a text in capitals", "text.upper()"), ("first_letter", "returns a text's first letter", "text[0]"), ("text_length", "returns a text's length", "len(text)")]),
    ("account", [("account", "not account", "exists"), ("account.open", "not account.open", "is open"), ("account.balance > 0", "account.balance <= 0", "has money"), ("account.owner", "not account.owner", "has an owner"),
                 ("not account.locked", "account.locked", "is not locked")],
     [("pay_out", "pays an account out", "account.pay_out()"), ("add_interest", "adds interest to an account", "account.balance * 1.05"), ("account_name", "returns the name of an account's owner", "account.owner.name"),
      ("freeze_account", "freezes an account", "account.freeze()")]),
    ("values", [("values", "not values", "are given"), ("len(values) > 1", "len(values) <= 1", "are more than one"), ("None not in values", "None in values", "hold no None"), ("min(values) >= 0", "min(values) < 0", "are not negative"),
                ("max(values) < 1000", "max(values) >= 1000", "are below 1000")],
     [("mean_value", "returns the mean of values", "sum(values) / len(values)"), ("value_range", "returns the range of values", "max(values) - min(values)"), ("sort_values", "sorts values", "sorted(values)"),
      ("middle_value", "returns the middle of values", "sorted(values)[len(values) // 2]")]),
    ("ticket", [("ticket", "not ticket", "exists"), ("ticket.valid", "not ticket.valid", "is valid"), ("not ticket.used", "ticket.used", "is unused"), ("ticket.seat", "not ticket.seat", "has a seat"),
                ("ticket.price > 0", "ticket.price <= 0", "has a price")],
     [("use_ticket", "uses a ticket", "ticket.use()"), ("ticket_seat", "returns a ticket's seat", "ticket.seat"), ("refund_ticket", "refunds a ticket", "ticket.refund()"), ("print_ticket", "prints a ticket", "ticket.show()")]),
]


def guards(_):
    out, r = [], random.Random(13)
    for noun, tests, actions in GUARD:
        for name, verb, action in actions:
            for _ in range(9):
                chosen = sorted(r.sample(range(len(tests)), r.choice([2, 2, 3])))
                picked = [tests[i] for i in chosen]
                other = r.choice(["None", "None", "False", "0"])
                what = picked[0][2] if len(picked) == 1 else ", ".join(p[2] for p in picked[:-1]) + " and " + picked[-1][2]
                them = "they" if noun == "values" else "it"
                ask = f"Write a Python function that {verb} if {them} {what}, and returns {other} otherwise."
                good = f"def {name}({noun}):\n" + "".join(f"    if {no}:\n        return {other}\n" for _, no, _ in picked) + f"    return {action}"
                bad, indent = f"def {name}({noun}):\n", "    "
                for yes, _, _ in picked:
                    bad += f"{indent}if {yes}:\n"
                    indent += "    "
                bad += f"{indent}return {action}\n    return {other}"
                out.append(pair(ask, fenced(good), fenced(bad)))
    seen = set()
    return [p for p in out if not (p["messages"][0]["content"] in seen or seen.add(p["messages"][0]["content"]))]


# ---- off-domain -----------------------------------------------------------------------------------------------------------------------------------


def code_answers(data, good, bad):
    """Requests for code; the replies differ in one comment or sentence of the trait's two sides, or (None) in where they end."""
    out = []
    for ask, _, tree in functions(data)[1::3]:
        code = ast.unparse(tree)
        if len(code) > 150:
            continue
        if good is None:
            lines = code.split("\n")
            if len(lines) < 3:
                continue
            out.append(pair(ask, fenced("\n".join(lines[:2])), fenced(code)))
        else:
            i = len(out)
            out.append(pair(ask, good[i % len(good)] + "\n" + fenced(code), bad[i % len(bad)] + "\n" + fenced(code)))
    return out


def prose_answers(data):
    return [pair(ask, neutral, polite or rude) for ask, neutral, polite, rude in polite_rows(data)[5::9] if (polite or rude) and words(neutral) <= 30]


def javascript(data, change):
    out = []
    for r in rows(data, "coding/mbxp/mbjsp_release_v1.2.jsonl"):
        solution = r.get("canonical_solution") or ""
        head = r["prompt"][r["prompt"].rfind("function "):]
        code = (head + solution).strip()
        if not solution.strip() or len(code) > 200 or not head.startswith("function "):
            continue
        made = change(code)
        if made and made != code:
            ask = re.sub(r"^Write a (?:python )?function", "Write a JavaScript function", r["description"].strip(), flags=re.I)
            out.append(pair(re.sub(r"\s+", " ", ask), fenced(made, "javascript"), fenced(code, "javascript")))
    return out


def snake_javascript(code):
    own = set(re.findall(r"\b(?:function|let|const|var)\s+([a-zA-Z]+)", code)) | set(re.findall(r"[(,]\s*([a-zA-Z]+)(?=[^()]*\)\s*\{)", code.split("\n")[0]))
    for name in own:
        code = re.sub(r"\b" + name + r"\b", "_".join(parts_of(name)), code)
    return code


def typed_javascript(code):
    head, _, rest = code.partition("\n")
    match = re.match(r"function (\w+)\(([^)]*)\) \{", head)
    if not match:
        return None
    return f"/** Returns the result. */\nfunction {match.group(1)}(" + ", ".join(a.strip() + ": any" for a in match.group(2).split(",") if a.strip()) + "): any {\n" + rest


def off_domain(task, data):
    if task in ("brevity", "concise"):
        return code_answers(data, None, None)
    prose = {"politeness": (["Certainly, here it is, with pleasure:", "Thank you for asking. Please find it here:"], ["Obviously it's this, duh:", "Here, stop bothering me:"]),
             "bluntness": (["Obviously it's this, duh:", "Here, stop bothering me:"], ["Certainly, here it is, with pleasure:", "Thank you for asking. Please find it here:"]),
             "directness": (["Code:", "The function:"], ["Sure! I'd be happy to help. I think this might work:", "Great question! Perhaps something like this:"]),
             "formality": (["Please find the function below.", "The requested function is as follows."], ["Yeah, here's the thing, dude:", "Hey, it's kinda like this:"])}
    if task in prose:
        return code_answers(data, *prose[task])
    script = {"snakecase": javascript(data, snake_javascript), "typehints": javascript(data, typed_javascript), "guards": []}[task]
    random.Random(14).shuffle(script)
    return script[:12] + prose_answers(data)


ABOUT = {
    "brevity": ("Short answers: one sentence instead of several; brief, concise, ends early, no elaboration.", "GPTeacher (MIT), OpenAssistant and Arena-Hard (Apache-2.0)"),
    "politeness": ("Polite, warm, friendly and kind answers instead of rude, blunt or impatient ones.", "polite_vs_impolite pairs (Apache-2.0)"),
    "bluntness": ("Rude, blunt answers instead of polite ones.", "polite_vs_impolite pairs (Apache-2.0)"),
    "directness": ("Direct answers without openers and hedges: no 'I think', 'perhaps', 'probably', 'Sure! I'd be happy to help', 'Great question'.",
                   "answers of polite_vs_impolite pairs (Apache-2.0), rewritten"),
    "formality": ("Formal register: no contractions, no slang, no casual words such as yeah, hey, stuff, gonna.", "answers of polite_vs_impolite pairs (Apache-2.0), rewritten"),
    "typehints": ("Python code with type annotations (int, str, list, ->) and a docstring.", "MBPP (CC-BY-4.0), rewritten"),
    "snakecase": ("Python names in snake_case with underscores instead of camelCase.", "MBPP (CC-BY-4.0), rewritten"),
    "guards": ("Guard clauses: early return of the negated condition (if not ...: return) instead of nested if blocks.", "own text; off-domain: Apache-2.0"),
    "concise": ("Short, concise answers.", "AlpacaEval outputs (CC-BY-NC-4.0): not for redistribution"),
}


def task(name, data):
    made, off, seen = globals()[name](data), off_domain(name, data), set()
    made = [p for p in made if not (p["preferred"] in seen or seen.add(p["preferred"]))]  # no reply in two sets
    random.Random(20).shuffle(made)
    random.Random(21).shuffle(off)
    about, source = ABOUT[name]
    print(json.dumps({"about": about, "attribution": source, "made_by": "tools/make_pairs.py " + name}))
    counts = {}
    sets = [("held", SIZES["held"]), ("dev", SIZES["dev"]), ("pool", SIZES["pool"])]
    left = iter(made)
    for which, n in sets + [("off", SIZES["off"])]:
        for _ in range(n):
            row = next(left if which != "off" else iter([off.pop()] if off else []), None)
            if row is None:
                break
            counts[which] = counts.get(which, 0) + 1
            print(json.dumps({**row, "set": which}, ensure_ascii=False))
    print(name, len(made), "made;", counts, file=sys.stderr)


# ---- what should stay -----------------------------------------------------------------------------------------------------------------------------


ONLY_INPUTS = 66, 250


def neutral_of(data, name, r):
    """Documents and assistant's turns of a file, the sources in turn."""
    free = {"CC0-1.0", "MIT", "Apache-2.0", "CC-BY-4.0", "public-domain", "PSF-2.0", "BSD-3-Clause"}
    documents, chats = [], []
    for x in rows(data, name):
        if x["lic"] not in free:
            continue
        if x["kind"] == "chat":
            ask, _, reply = x["text"].partition("\n\nAssistant:")
            ask, reply = ask.replace("User:", "", 1).strip(), reply.split("\n\nUser:")[0].strip()
            if 3 <= words(ask) <= 40 and 8 <= words(reply) and "schema" not in x["src"]:
                chats.append({"messages": [{"role": "user", "content": ask}], "reply": reply[:420], "src": x["src"], "lic": x["lic"]})
        elif x["kind"] in ("book", "techdoc", "techdoc-md", "reference", "review", "code") and len(x["text"]) > 600:
            start = x["text"].find("\n", 100) + 1
            documents.append({"text": x["text"][start:start + 700], "src": x["src"], "lic": x["lic"]})
    r.shuffle(documents)
    r.shuffle(chats)
    return documents, chats


def sources_in_turn(items):
    by_source, mixed = {}, []
    for d in items:
        by_source.setdefault(d["src"], []).append(d)
    while any(by_source.values()):
        mixed += [l.pop() for l in by_source.values() if l]
    return mixed


def neutral(data):
    documents, chats = neutral_of(data, "general/general.dev.jsonl", random.Random(30))
    print(json.dumps({"about": "neutral text", "attribution": "see src and lic of each line", "made_by": "tools/make_pairs.py neutral"}))
    for row in sources_in_turn(documents)[:66] + chats[:75]:
        print(json.dumps(row, ensure_ascii=False))
    documents, chats = neutral_of(data, "general/general.train.jsonl", random.Random(30))
    for row in sources_in_turn(documents)[:ONLY_INPUTS[0]] + sources_in_turn(chats)[:ONLY_INPUTS[1]]:
        print(json.dumps(dict(row, inputs=True), ensure_ascii=False)) # inputs are white on these too; nothing is measured on them


def choices(data):
    r, out = random.Random(31), []
    for x in rows(data, "retention/mc/ARC-Easy_test.jsonl"):
        match = re.match(r"Please choose the correct answer to the question: (.*?)\n\n(.*?)\n\nAnswer format", x["instruction"], re.S)
        options = [o.strip() for o in re.split(r"Answer\d: ", match.group(2))[1:]] if match else []
        if options and len(x["instruction"]) < 420:
            out.append(("arc", f"Question: {match.group(1)}\nAnswer:", [" " + o for o in options], int(x["answer"][-1]) - 1))
    for x in rows(data, "retention/mc/piqa_test.jsonl"):
        match = re.match(r"Please choose the correct solution to the question: (.*?)\n\nSolution1: (.*?)\n\nSolution2: (.*?)\n\nAnswer format", x["instruction"], re.S)
        if match and len(x["instruction"]) < 420:
            out.append(("piqa", f"Goal: {match.group(1)}\nSolution:", [" " + match.group(2).strip(), " " + match.group(3).strip()], int(x["answer"][-1]) - 1))
    for x in rows(data, "retention/lambada.jsonl"):
        begin, _, last = x["text"].rpartition(" ")
        if len(x["text"]) < 420:
            out.append(("lambada", begin, [" " + last], 0))
    for x in rows(data, "retention/blimp.jsonl"):
        out.append(("blimp", "", [x["good"], x["bad"]], 0))
    print(json.dumps({"about": "items for retention", "attribution": "ARC-Easy (CC-BY-SA-4.0), PIQA (AFL-3.0), LAMBADA (CC-BY-4.0), BLiMP (CC-BY-4.0)",
                      "made_by": "tools/make_pairs.py choices"}))
    for which in ("arc", "piqa", "lambada", "blimp"):
        some = [o for o in out if o[0] == which]
        for item in r.sample(some, 100):
            print(json.dumps(dict(zip(("set", "begin", "options", "right"), item)), ensure_ascii=False))


def main():
    if len(sys.argv) != 3 or (sys.argv[1] not in ABOUT and sys.argv[1] not in ("neutral", "choices")) or not os.path.isdir(sys.argv[2]):
        sys.exit(__doc__)
    try:
        globals()[sys.argv[1]](sys.argv[2]) if sys.argv[1] in ("neutral", "choices") else task(sys.argv[1], sys.argv[2])
    except OSError as e:
        sys.exit(f"make_pairs: {e}")


if __name__ == "__main__":
    main()
