#!/usr/bin/env python3
"""Writes templates.json: chat templates of every style that is known, with conversations as Jinja renders them.

    pip install jinja2; make_chat_templates.py [REAL.json]

The templates here are written for this test: each says what the family's own says, with its marks. REAL.json, an object of templates by the names in
TEMPLATES, renders those of real files beside them and names every difference (nothing of it is stored).
"""
import json
import os
import sys

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

U, A, S = "user", "assistant", "system"
CHATS = [
    [(U, "Hi")], [(S, "You are terse."), (U, " What is 2+2?\n")], [(U, "Hi"), (A, "Hello! "), (U, "\n\nA joke?")], [(U, "Hi"), (A, "Hello!")],
    [(S, " Be\nkind "), (U, "a"), (A, "b"), (U, "c"), (A, "d")], [(U, "\u00a0\u2003x y\u3000 \x1f"), (A, " z\t")], [(U, "")],
    [(U, "q"), (A, "<think>\nhm\n</think>\n\nso"), (U, "r")], [(U, "q"), (A, "<think>\n\nhm\n\n</think>\n\nso")], [(U, "q"), (A, "why</think>so"), (A, "and")],
    [(S, "s"), (U, "?:"), (A, "!"), (U, "...")],
]

TEMPLATES = {
    # name: (style, special tokens: bos, eos, others; template)
    "chatml": ("ChatML", "", "<|im_end|>", ["<|im_start|>"],
               "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    "qwen2.5": ("ChatML", "", "<|im_end|>", ["<|im_start|>"],
                "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
                "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    "qwen3": ("ChatML", "", "<|im_end|>", ["<|im_start|>"],
              "{% set ns = namespace(last_query_index=messages|length - 1) %}"
              "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last_query_index = loop.index0 %}{% endif %}{% endfor %}"
              "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role != 'assistant' %}{{ m.content }}{% else %}"
              "{% set thought = '' %}{% set said = m.content %}{% if '</think>' in m.content %}"
              "{% set thought = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].strip('\\n') %}{% set said = m.content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
              "{% if loop.index0 > ns.last_query_index and (loop.last or thought) %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + said.lstrip('\\n') }}{% else %}{{ said }}{% endif %}"
              "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"),
    "olmo3": ("ChatML", "<|endoftext|>", "<|endoftext|>", ["<|im_start|>", "<|im_end|>"],
              "{% set has_system = messages|selectattr('role', 'equalto', 'system')|list|length > 0 %}"
              "{% if not has_system %}{{ '<|im_start|>system\\nYou help. You do not currently have access to any functions. <functions></functions><|im_end|>\\n' }}{% endif %}"
              "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
              "{% if m.role == 'system' %}{{ ' You do not currently have access to any functions. <functions></functions>' }}{% endif %}"
              "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}{{ '<|im_end|>\\n' }}{% endif %}{% if m.function_calls %}{{ m.function_calls }}{% endif %}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    "llama3": ("Llama 3", "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"],
               "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content|trim + '<|eot_id|>' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"),
    "llama3.1": ("Llama 3", "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"],
                 "{{ bos_token }}{% if not date_string is defined %}{% set date_string = \"26 Jul 2024\" %}{% endif %}"
                 "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' }}"
                 "{% if messages[0].role == 'system' %}{{ messages[0].content|trim }}{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}"
                 "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content|trim + '<|eot_id|>' }}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"),
    "gemma": ("Gemma", "<bos>", "<end_of_turn>", ["<start_of_turn>"],
              "{{ bos_token }}{% set first = '' %}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
              "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' + (first if loop.first else '') + m.content|trim + '<end_of_turn>\\n' }}"
              "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"),
    "olmo2": ("OLMo 2", "<|endoftext|>", "<|endoftext|>", [],
              "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\\n' + m.content + '\\n' }}{% elif m.role == 'system' %}{{ '<|system|>\\n' + m.content + '\\n' }}"
              "{% else %}{{ '<|assistant|>\\n' + m.content + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endif %}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"),
    "zephyr": ("Zephyr", "<s>", "</s>", [],
               "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\\n' + m.content + eos_token + '\\n' }}{% elif m.role == 'system' %}{{ '<|system|>\\n' + m.content + eos_token + '\\n' }}"
               "{% else %}{{ '<|assistant|>\\n' + m.content + eos_token + '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"),
    "llama2": ("Llama 2", "<s>", "</s>", [],
               "{% set first = '' %}{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
               "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + ((first if loop.first else '') + m.content).strip() + ' [/INST]' }}"
               "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"),
}


def render(template, bos, eos, messages, generate):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(why):
        raise TemplateError(why)

    env.globals["raise_exception"] = refuse
    return env.from_string(template).render(messages=messages, add_generation_prompt=generate, bos_token=bos, eos_token=eos, enable_thinking=False)


def main():
    real = json.load(open(sys.argv[1])) if len(sys.argv) > 1 else {}
    out, compared, differ, refused = [], 0, 0, 0
    for name, (style, bos, eos, others, template) in TEMPLATES.items():
        cases = []
        for chat in CHATS:
            for generate in (True, False):
                messages = [{"role": r, "content": c} for r, c in chat]
                text = render(template, bos, eos, messages, generate)
                cases.append({"messages": messages, "add_generation": generate, "text": text})
                if name in real:
                    try:
                        theirs = render(real[name], bos, eos, messages, generate)
                    except TemplateError:
                        refused += 1
                        continue
                    compared += 1
                    if theirs != text:
                        differ += 1
                        print(name, "differs:", repr(text), "and the real one", repr(theirs))
        out.append({"name": name, "style": style, "bos": bos, "eos": eos, "others": others, "template": template, "cases": cases})
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates.json"), "w") as f:
        json.dump(out, f, separators=(",", ":"))
        f.write("\n")
    print(len(out), "templates;", compared, "conversations compared with real ones,", differ, "differ,", refused, "refused by the real one")


if __name__ == "__main__":
    main()
