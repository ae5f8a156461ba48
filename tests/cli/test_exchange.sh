#!/usr/bin/env bash
# What goes to and comes from other tools: dictionaries in their formats, activations, bases and adapters. Where ESPALIER_TEST_PYTHON names a Python with
# numpy, torch, transformers, peft, llama-cpp-python and sae-lens, each of them reads what was written and must find the same numbers.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
d=(--model tiny.gguf --dictionary dict)
golden=$ESPALIER_TEST_DIR/golden/sae

# Activations from a file against the peers' own encodings
cat >acts.py <<'PY'
import json, struct, sys

def golden(folder):
    b = open(folder + "/golden.safetensors", "rb").read()
    n = struct.unpack("<Q", b[:8])[0]
    h = json.loads(b[8:8 + n])
    out = {}
    for k in ("x", "acts"):
        i, j = (8 + n + o for o in h[k]["data_offsets"])
        shape = h[k]["shape"]
        v = struct.unpack("<%df" % (shape[0] * shape[1]), b[i:j])
        out[k] = [list(v[r * shape[1]:(r + 1) * shape[1]]) for r in range(shape[0])]
    return out

g = golden(sys.argv[2])
if sys.argv[1] == "write":
    rows, cols = len(g["x"]), len(g["x"][0])
    head = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (rows, cols)
    head += " " * (63 - (10 + len(head)) % 64) + "\n"
    open("x.npy", "wb").write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + b"".join(struct.pack("<%df" % cols, *r) for r in g["x"]))
else:
    got = json.load(open("out"))["tokens"]
    assert len(got) == len(g["acts"])
    largest = max(max(r) for r in g["acts"])
    for t, row in zip(got, g["acts"]):
        dense = [0.0] * len(row)
        for f in t["features"]:
            dense[f["index"]] = f["activation"]
        assert max(abs(a - b) for a, b in zip(dense, row)) < 1e-4 * largest
        values = [f["activation"] for f in t["features"]]
        assert values == sorted(values, reverse=True)
PY
for s in gated topk jumprelu-bf16 gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71 gemma-scope-2-270m-pt/attn_out/layer_9_width_16k_l0_small \
  llama-scope/Llama3_1-8B-Base-L8R-8x dictionary-learning/BatchTopKSAE/trainer_0; do
  python3 acts.py write "$golden/$s"
  want 0 encode x.npy --dictionary "$golden/$s" --top 100 --json
  python3 acts.py check "$golden/$s" || fail "encode x.npy with $s"
done
want 0 encode x.npy --dictionary "$golden/gated" --top 1; plain out
refused 2 "--dictionary" encode x.npy
refused 1 "width 24" encode x.npy --dictionary dict
printf 'no array' >bad.npy; refused 1 "no npy file" encode bad.npy --dictionary "$golden/gated"
refused 1 "width 24, layer 9; of the model" encode texts.jsonl --model tiny.gguf --dictionary "$golden/gemma-scope-2-270m-pt/attn_out/layer_9_width_16k_l0_small"
refused 1 "and writes something else" encode texts.jsonl --model tiny.gguf --dictionary "$golden/gemma-scope-2-270m-pt/transcoder/layer_7_width_16k_l0_small_affine"

# Dictionaries converted
want 0 dictionary convert dict layer_1-gemma --to gemma-scope --json
want 0 dictionary info layer_1-gemma --json; is '(v["format"], v["features"], v["architecture"]) == ("gemma-scope", 96, "jumprelu")' out || fail "convert"
want 0 dictionary convert layer_1-gemma again --to saelens
want 0 dictionary info again --json; is 'v["format"] == "saelens" and not v["apply_b_dec_to_input"]' out || fail "convert back"
refused 2 "no format" dictionary convert dict x --to gguf
refused 2 "--to FORMAT" dictionary convert dict x
refused 1 "gates" dictionary convert "$golden/gated" x --to gemma-scope

# A basis as a file, taken in elsewhere with its labels
want 0 label add --feature 5 --text "polite words" --tags "tone good" --rating 4 --author ann "${d[@]}"
want 0 label add --feature 7 --text "here already" --author ann "${d[@]}"
want 0 basis new brief 5 7 11 "${d[@]}"
want 0 basis add brief 5 7 11 --lo -50 --hi 50 "${d[@]}"
want 0 basis export brief brief.safetensors "${d[@]}" --json; is 'v["kind"] == "safetensors"' out || fail "basis export"
second=(--home "$work/second" "${d[@]}")
want 0 label add --feature 7 --text "mine" --author bob "${second[@]}"
want 0 basis import brief.safetensors --name theirs "${second[@]}" --json
is '(v["name"], v["features"], v["labels"]) == ("theirs", 3, 1)' out || fail "basis import"
want 0 label export "${second[@]}" --json
is 'sorted((l["feature"], l["text"], l["author"]) for l in v) == [(5, "polite words", "ann"), (7, "mine", "bob")]' out || fail "labels of a basis"
want 0 basis show theirs "${second[@]}" --json; is '[f["feature"] for f in v["features"]] == [5, 7, 11]' out || fail "an imported basis"
want 0 basis show brief.safetensors "${d[@]}"
cp -r dict foreign # the same dictionary, without the name of its model
python3 - <<'PY'
import json
c = json.load(open("foreign/cfg.json")); del c["metadata"]["espalier_model_sha256"]; json.dump(c, open("foreign/cfg.json", "w"))
b = bytearray(open("tiny.gguf", "rb").read()); b[-5] ^= 1; open("other.gguf", "wb").write(b) # another model: one weight differs
PY
refused 1 "$(sha256sum tiny.gguf | cut -c1-64)" basis import brief.safetensors --model other.gguf --dictionary foreign --home "$work/third"
refused 1 "$(sha256sum other.gguf | cut -c1-64)" basis import brief.safetensors --model other.gguf --dictionary foreign --home "$work/third"
want 0 dictionary convert foreign foreign2 --to saelens # other bytes: another hash
refused 1 "of the dictionary" basis import brief.safetensors --model tiny.gguf --dictionary foreign2 --home "$work/third"
head -c 900 brief.safetensors >cut.safetensors; refused 1 "cut.safetensors" basis import cut.safetensors "${d[@]}"
want 0 basis export brief brief-sae "${d[@]}" --to saelens
want 0 dictionary info brief-sae --json; is 'v["features"] == 3' out || fail "basis as a SAELens folder"
want 0 basis export brief brief.npz "${d[@]}"
want 0 basis export brief five.gguf "${d[@]}" --feature 5 --strength 3
refused 2 "--feature" basis export brief five.gguf "${d[@]}"
refused 1 "not in the basis" basis export brief five.gguf "${d[@]}" --feature 6

# Adapters
want 0 adapt --basis brief --experiences pairs.jsonl --form lora --steps 8 --force --out lora.safetensors "${d[@]}" --quiet
want 0 adapt --basis brief --experiences pairs.jsonl --form bias --steps 8 --force --out bias.safetensors "${d[@]}" --quiet
want 0 export lora.safetensors --to peft peft "${d[@]}"
python3 -c 'import json; c = json.load(open("peft/adapter_config.json")); assert c["peft_type"] == "LORA" and c["lora_alpha"] == c["r"]' || fail "adapter_config.json"
want 0 export lora.safetensors --to gguf-lora lora.gguf "${d[@]}"
want 0 export bias.safetensors --to control-vector bias.gguf "${d[@]}"
want 0 export bias.safetensors --to persona bias.pt "${d[@]}"
want 0 export bias.safetensors --to persona persona.safetensors "${d[@]}"
want 0 export bias.safetensors --to npz bias.npz "${d[@]}"
refused 1 "only lora" export bias.safetensors --to peft peft2 "${d[@]}"
refused 1 ".pt" export bias.safetensors --to persona bias.txt "${d[@]}"
refused 2 "peft" export bias.safetensors --to word x "${d[@]}"

[ -n "${ESPALIER_TEST_PYTHON:-}" ] || { echo "ESPALIER_TEST_PYTHON is not set: the peers were not asked"; exit 0; }
for f in gemma-scope-2 dictionary-learning llama-scope; do want 0 dictionary convert dict "layer_1-$f" --to "$f"; done
for k in GatedAutoEncoder AutoEncoderTopK MatryoshkaBatchTopKSAE; do
  want 0 dictionary convert "$golden/dictionary-learning/$k/trainer_0" "lens-$k" --to saelens
  want 0 dictionary convert "lens-$k" "back-$k" --to dictionary-learning
done
python3 -c 'import json; print(json.loads(open("texts.jsonl").readline())["text"])' >letter.txt
want 0 score letter.txt --model tiny.gguf --json --quiet; cp out base.json
want 0 score letter.txt --adapter lora.safetensors "${d[@]}" --json --quiet; cp out lora.json
want 0 score letter.txt --adapter bias.safetensors "${d[@]}" --json --quiet; cp out bias.json
"$ESPALIER_TEST_PYTHON" "$ESPALIER_TEST_DIR/cli/peers.py" || fail "a peer read something else"
