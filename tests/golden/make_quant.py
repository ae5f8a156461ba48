#!/usr/bin/env python3
"""Writes quant.bin: random blocks of each quantised type and what the gguf package makes of them.

For each type: u32 type number, u32 elements, u32 bytes, the bytes, the elements as f32. Little-endian.
    pip install gguf numpy; python3 make_quant.py quant.bin
"""
import struct
import sys

import gguf
import numpy as np

rng = np.random.default_rng(1)
scales_at = {"F16": (), "Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q6_K": (208,), "BF16": (), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82),
             "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "IQ4_NL": (0,)}  # f16 scales within a block
n_blocks = {"F16": 64, "Q4_0": 16, "Q4_1": 16, "Q8_0": 16, "Q6_K": 4, "BF16": 64}
with open(sys.argv[1], "wb") as out:
    for name, at in scales_at.items():
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = n_blocks.get(name, 2 if block == 256 else 8)
        raw = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
        for offset in at:
            raw[:, offset:offset + 2] = rng.normal(0, 0.02, blocks).astype(np.float16).reshape(-1, 1).view(np.uint8)
        if name == "F16":
            raw = rng.normal(0, 1, blocks).astype(np.float16).reshape(-1, 1).view(np.uint8)
        if name == "BF16":
            raw = gguf.quantize(rng.normal(0, 1, (blocks, 1)).astype(np.float32), kind)
        values = gguf.dequantize(raw, kind).astype("<f4").reshape(-1)
        out.write(struct.pack("<III", int(kind), blocks * block, raw.size) + raw.tobytes() + values.tobytes())
