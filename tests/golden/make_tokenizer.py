#!/usr/bin/env python3
"""Makes the golden files of the tokenizer and the chat template:

    make_tokenizer.py SmolLM2-135M-Instruct.Q4_1.gguf

tokenizer.txt   2,000 lines of code, prose, emoji, CJK, odd spaces; always the same ones
tokenizer.ids   their ids as 16-bit little-endian numbers, from Hugging Face's tokenizers built from the file's own vocabulary with the
                pre-tokenizers of SmolLM2's tokenizer.json (digits one by one, then GPT-2's pattern)
chat.json       rendered conversations and their ids, from transformers' apply_chat_template with the file's own template

Needs gguf, tokenizers and transformers; with llama-cpp-python it prints where llama.cpp disagrees.
"""
import array
import json
import os
import random
import sys

HAND = [
    "Hello, world!", "I'm sure you've heard they'll say we'd better not; it's John's, isn't it?", "I'M SURE YOU'VE HEARD THEY'LL",
    "don't'tis 'twas ''s ''' 's 't 're 've 'm 'll 'd 'x 'S 'T 'LL", "rock'n'roll o'clock ’s ’t we’re they’ve",
    "3.14159 1,000,000 0x1F 1e-9 007 50% $9.99 €12,50 ½ ¾ ² ³ ① ② Ⅷ ٣٤٥ ४५६ 一二三 ５６７", "a1b2c3 1a 2b  3c   4d\t5e",
    "2026-11-23T21:14:00Z 192.168.0.1 ::1 +49 (0)30 1234567", "   leading spaces", "trailing spaces   ", "tabs\tand\t\tmore\t\t\ttabs",
    " a  b   c    d     e      f", "\u00a0no-break\u00a0space\u00a0\u00a0twice", "thin\u2009space hair\u200aspace en\u2002em\u2003quad\u2001",
    "ideographic\u3000space\u3000\u3000x", "narrow\u202fno-break math\u205fspace ogham\u1680mark", "zero\u200bwidth\u200cnon\u200djoiner\ufeffbom",
    "line\u2028separator paragraph\u2029separator next\u0085line", "vertical\x0btab form\x0cfeed", "carriage\rreturn inside", "ends in CRLF\r",
    "  \u00a0 \u3000 mixed \t \u2003 5", " \u00a05", "x \u3000y", "\u3000\u3000 z", "soft\u00adhyphen combining e\u0301 a\u0308 n\u0303 \u0301alone",
    "日本語のテキストをトークンに分ける。カタカナ、ひらがな、漢字！", "中文分词测试：你好，世界。简体字和繁體字。", "한국어 문장을 토큰으로 나눕니다.",
    "Привет, мир! Съешь же ещё этих мягких французских булок.", "Γειά σου Κόσμε", "مرحبا بالعالم ١٢٣", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "Xin chào thế giới", "Zażółć gęślą jaźń", "Straße, Größe, Übermut; æ ø å; ß ẞ; ŒUVRE; İıI", "ʻokina Hawaiʻi ʼn ﬁ ﬂ ﬀ",
    "😀😃😄 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☎️ 1️⃣ #️⃣ 🫠", "👨‍💻 writes 🐍 at 3️⃣ o'clock🕒!", "🏴󠁧󠁢󠁥󠁮󠁧󠁿 🤷🏿‍♀️🤷🏻‍♂️", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → ∞ ≠ ∅",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𝒜𝓑 ｆｕｌｌｗｉｄｔｈ ＡＢＣ", "┌─┬─┐ │ │ │ └─┴─┘ ▁▂▃▄▅▆▇█ ⣿⡇", "“quotes” ‘single’ «guillemets» „low“ … — – ‐ ‑ ·", "→ ← ↑ ↓ ⇒ ✓ ✗ ★ ☆ © ® ™ § ¶ † ‡",
    "!!!???...,,,;;;:::", "((([[[{{{<<<>>>}}}]]])))", "a.b.c_d-e/f\\g|h~i`j^k&l*m%n$o#p@q", "---===+++***___~~~", "http://example.com/path?query=1&x=%20#frag",
    "user.name+tag@sub.example.co.uk", "<|im_start|>system is only text here<|im_end|>", "<|endoftext|> <repo_name> <|im_start|", "<html><body class=\"a\">&nbsp;&amp;</body></html>",
    "# Heading", "- [ ] task **bold** _it_ `code` [link](url)", "| a | b |", "> quote", "```python", "```", "    indented code", "\t\tif (x) {", "\t}", "", " ", "  ", "\t", "   \t  ",
    "def f(x: int = 0) -> str:  # comment", "    return f\"{x!r:>{10}}\" if x else ''", "for (int i = 0; i < n; ++i) { a[i] ^= 0xFF & ~b[i]; }", "#include <stdio.h>", "std::vector<std::pair<int,int>> v{{1,2},{3,4}};",
    "const f = async (x) => { await g(`t${x}`); };", "SELECT a.*, COUNT(*) FROM t AS a WHERE x >= 10 GROUP BY 1;", "fn main() { println!(\"{:?}\", vec![1u8; 3]); }", "$ ls -la | grep -v '^d' > /dev/null 2>&1 &",
    "{\"key\": [1, 2.5, null, true], \"s\": \"\\u00e9\\n\"}", "a" * 200, "ab" * 90, " " * 150, "\t" * 40, "=" * 120, "0" * 60, "é" * 50, "漢" * 40, "😀" * 20, "x " * 60, "\u3000" * 20, "ha" * 41 + "!",
    "supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "camelCaseIdentifier snake_case_identifier SCREAMING_SNAKE kebab-case-name HTTPServerError2XX", "private use \ue000\uf8ff and unassigned \u0378 \U000e0080 tag",
]

WORDS = ("the of and to in a is that it for was on are with as his they be at one have this from or had by hot but some what there we can out other were all "
         "your when up use word how said an each she which do their time if will way about many then them would write like so these her long make thing see him "
         "two has look more day could go come did my sound no most number who over know water than call first people may down side been now find any new work part "
         "take get place made live where after back little only round man year came show every good me give our under name very through just form much great think "
         "espalier feature adapter gradient basis residual neuron token layer dictionary polite blunt concise verbose review commit branch merge Tuesday London Müller "
         "naïve café façade Zürich São-Paulo coöperate jalapeño señor").split()
ENDS = [".", ".", ".", "!", "?", "...", ";", ":", " —", "?!", ".)", ".\"", "”"]
CONTR = ["I'm", "don't", "we've", "they'll", "she'd", "it's", "you're", "won't", "y'all", "O'Brien's", "'cause", "the '90s", "CAN'T", "we’ll"]
SPACES = [" ", "  ", "   ", "\t", "\u00a0", "\u2003", "\u3000", " \t ", "\u2009", "\r", "\x0b"]
RANGES = [(0x20, 0x7e), (0xa1, 0x17f), (0x370, 0x3ff), (0x400, 0x4ff), (0x590, 0x5f4), (0x620, 0x66f), (0x900, 0x97f), (0xe01, 0xe5b), (0x10a0, 0x10ff), (0x1e00, 0x1eff),
          (0x2010, 0x2027), (0x2030, 0x205e), (0x2070, 0x209c), (0x20a0, 0x20bf), (0x2100, 0x218b), (0x2190, 0x23ff), (0x2460, 0x24ff), (0x2500, 0x27bf), (0x3041, 0x30ff),
          (0x4e00, 0x9fa5), (0xac00, 0xd7a3), (0xff01, 0xffee), (0x1d400, 0x1d7ff), (0x1f300, 0x1f64f), (0x1f680, 0x1f6c5), (0x1f900, 0x1f9ff), (0x20000, 0x2a6d6)]


def ident(r):
    parts = [r.choice(WORDS).split("-")[0] for _ in range(r.randint(1, 3))]
    style = r.randrange(4)
    if style == 0:
        return "_".join(parts).lower()
    if style == 1:
        return parts[0].lower() + "".join(p.title() for p in parts[1:])
    if style == 2:
        return "".join(p.title() for p in parts) + str(r.randint(0, 99))
    return "_".join(parts).upper()


def prose(r):
    out = []
    for _ in range(r.randint(3, 14)):
        w = r.choice(CONTR) if r.random() < 0.1 else r.choice(WORDS)
        out.append(w.title() if r.random() < 0.15 else w)
        if r.random() < 0.1:
            out[-1] += ","
    return out[0].capitalize() + " " + " ".join(out[1:]) + r.choice(ENDS)


def code(r):
    a, b, c, n = ident(r), ident(r), ident(r), r.randint(-3, 100000)
    indent = r.choice(["", "  ", "    ", "        ", "\t", "\t\t", " \t"])
    return indent + r.choice([
        f"{a} = {b}({c}, {n})", f"if ({a} != {n} && !{b}) {{", f"}} else if ({a}->{b}[{n}] <= {c}.{a}) {{", f"def {a}(self, {b}=None, *{c}):", f"return {a} * ({b} + {n}) / {c};",
        f"// {prose(r)}", f"# {prose(r)}", f"/* {a} */ static const uint32_t {b} = 0x{abs(n):08X}u;", f"for {a} in range({n}, len({b}), {abs(n) % 9 + 1}):", f"let mut {a}: Vec<{b}> = {c}::new();",
        f"<div id=\"{a}\" class='{b} {c}'>{n}</div>", f"\"{a}\": {{\"{b}\": {n}.{abs(n) % 97}, \"{c}\": \"\\t\"}},", f"SELECT {a}, {b} FROM {c} WHERE {a} > {n};", f"@{a}.{b}(\"{c}-{n}\")",
        f"printf(\"%-{abs(n) % 20}s|%5.{abs(n) % 5}f\\n\", {a}, {b});", f"{a}+={b}<<{abs(n) % 31}|{c}>>>2;", f"export {a.upper()}=${{{b}:-{n}}} && ./{c}.sh --{a}={n}", f"+++ b/src/{a}/{b}.c", f"@@ -{abs(n)},7 +{abs(n)+1},9 @@ {a}",
    ])


def numbers(r):
    return r.choice([", ", " ", "; ", "\t", "  "]).join(r.choice([f"{r.randint(0, 10**r.randint(1, 12))}", f"{r.uniform(-1e4, 1e4):.{r.randint(0, 6)}f}", f"{r.randint(0, 99):02d}:{r.randint(0, 59):02d}", f"{r.randint(0, 2**32):x}",
                                                          f"{r.randint(1, 31)}/{r.randint(1, 12)}/{r.randint(1900, 2100)}", f"v{r.randint(0, 9)}.{r.randint(0, 20)}", f"{r.randint(1, 10**9):,}", f"{r.randint(1, 20)}th"]) for _ in range(r.randint(1, 8)))


def scripts(r):
    out = []
    for _ in range(r.randint(1, 6)):
        lo, hi = r.choice(RANGES)
        out.append("".join(chr(r.randint(lo, hi)) for _ in range(r.randint(1, 8))))
    return r.choice(["", " ", " ", "\u3000", ", "]).join(out)


def spaces(r):
    out = r.choice(SPACES) * r.randint(0, 6)
    for _ in range(r.randint(1, 6)):
        out += r.choice([r.choice(WORDS), str(r.randint(0, 999)), r.choice(".,;:!?()[]{}'\"-+=*/"), r.choice(["漢字", "😀", "é", "٣", "'s"])])
        out += "".join(r.choice(SPACES) * r.randint(1, 4) for _ in range(r.randint(0, 3)))
    return out


def emoji(r):
    e = ["😀", "👍🏽", "👩‍🚀", "🏳️‍🌈", "🇯🇵", "❤️‍🔥", "🔥", "💯", "🤖", "🙏", "✨", "1️⃣", "☕", "🧠", "🫶🏿"]
    return "".join(r.choice(e) * r.randint(1, 2) + r.choice(["", " ", " " + r.choice(WORDS) + " ", r.choice(WORDS), str(r.randint(0, 9)), "!"]) for _ in range(r.randint(1, 6)))


def symbols(r):
    return "".join(r.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ") * r.randint(1, 3) for _ in range(r.randint(3, 25)))


def text():
    r = random.Random(20)
    kinds = [prose] * 6 + [code] * 6 + [numbers, scripts, scripts, spaces, spaces, emoji, symbols]
    lines = list(HAND)
    while len(lines) < 2000:
        line = r.choice(kinds)(r)
        if "\n" in line:
            continue
        lines.append(line + ("\r" if r.random() < 0.03 else ""))
    # whitespace across lines is one run for the pre-tokenizer: some blank lines, alone and in groups
    for at in sorted(r.sample(range(len(HAND), 2000), 60)):
        lines[at] = r.choice(["", "", " ", "\t", "\r"])
    return "\n".join(lines) + "\n"


CHATS = [
    ([("user", "Hi")], True),
    ([("user", "Hi")], False),
    ([("system", "You are terse."), ("user", "What is 2+2?")], True),
    ([("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Tell me a joke.\n\nMake it short.")], True),
    ([("user", "Hi"), ("assistant", "Hello!")], False),
    ([("system", ""), ("user", "")], True),
    ([("user", "\n leading newline and space")], True),
    ([("user", "trailing newline \n"), ("assistant", "  two spaces"), ("user", "日本語 😀 👩‍👩‍👧‍👦 ١٢٣")], True),
    ([("assistant", "I start."), ("system", "late system"), ("user", "ok?")], True),
    ([("user", "def f():\n\treturn 42\r\n")], True),
]


def main():
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    here = os.path.dirname(os.path.abspath(__file__))
    reader = gguf.GGUFReader(sys.argv[1])
    field = lambda k: reader.fields["tokenizer." + k].contents()
    tokens, types = field("ggml.tokens"), field("ggml.token_type")
    merges = [tuple(m.split(" ")) for m in field("ggml.merges")]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == 3])

    s = text()
    assert s.count("\n") == 2000
    with open(os.path.join(here, "tokenizer.txt"), "wb") as f:
        f.write(s.encode())
    tok.encode_special_tokens = True  # control tokens written in the text stay text
    ids = tok.encode(s, add_special_tokens=False).ids
    tok.encode_special_tokens = False
    a = array.array("H", ids)
    assert sys.byteorder == "little"
    with open(os.path.join(here, "tokenizer.ids"), "wb") as f:
        f.write(a.tobytes())
    print(len(s.encode()), "bytes,", len(ids), "ids")

    fast = PreTrainedTokenizerFast(tokenizer_object=tok, chat_template=field("chat_template"))
    cases = []
    for messages, generate in CHATS:
        m = [{"role": r, "content": c} for r, c in messages]
        out = fast.apply_chat_template(m, tokenize=True, add_generation_prompt=generate, return_dict=False)
        cases.append({"messages": m, "add_generation": generate, "ids": out})
    with open(os.path.join(here, "chat.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")

    try:
        import llama_cpp
    except ImportError:
        return
    llm = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
    at = 0
    differ = 0
    for i, line in enumerate(s.split("\n")):
        tok.encode_special_tokens = True
        mine = tok.encode(line, add_special_tokens=False).ids
        theirs = llm.tokenize(line.encode(), add_bos=False, special=False)
        if mine != theirs:
            differ += 1
            if differ <= 40:
                print("llama.cpp differs on line", i + 1, ascii(line)[:150], [tokens[x] for x in mine][:12], [tokens[x] for x in theirs][:12])
    whole = llm.tokenize(s.encode(), add_bos=False, special=False)
    print("llama.cpp: lines that differ", differ, "whole text equal:", whole == ids)


if __name__ == "__main__":
    main()
