#!/usr/bin/env python3
"""Golden dictionaries in every format that is read, written and encoded by the peers themselves.

usage: make_sae.py OUT [NAME...]    (OUT: tests/golden/sae; needs sae-lens, torch and dictionary-learning (pip install --no-deps))

Each folder gets the dictionary's files and golden.safetensors: x [T, d], acts [T, F], xhat [T, d_out]. SAELens folders are written by SAELens. The files
of Gemma Scope, dictionary_learning and Llama Scope are written by numpy, safetensors and torch.save as their makers did, and encoded by SAELens' loaders
for them (the files come from the folder instead of the hub) or, those of dictionary_learning, by its own classes.
"""
import json
import os
import sys
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.modules.setdefault("nnsight", MagicMock())  # dictionary_learning imports it for what is not used here
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig

D, F, T = 24, 40, 7
OUT = sys.argv[1]
ONLY = sys.argv[2:]


def randomise(module, g):
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if "W_" in name else 0.2))
        if hasattr(module, "threshold"):
            module.threshold.copy_(torch.rand(F, generator=g))
        module.W_dec *= 0.5 + torch.rand(F, 1, generator=g)  # rows of unlike norms


def inputs(g):
    return torch.randn(T, D, generator=g) * 3 + 0.5


def keep(folder, x, acts, xhat):
    save_file({"x": x.float().contiguous(), "acts": acts.float().contiguous(), "xhat": xhat.float().contiguous()}, os.path.join(folder, "golden.safetensors"))
    print(os.path.relpath(folder, OUT), sorted(os.listdir(folder)), f"{(acts > 0).sum(1).float().mean():.1f} active")


# ---- SAELens ----------------------------------------------------------------------------------------------------------------

CASES = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "standard-no-b-dec": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
    "standard-layer-norm": (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
    "standard-average": (StandardSAE, StandardSAEConfig, {"normalize_activations": "expected_average_only_in"}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5}),
    "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "jumprelu-constant-norm": (JumpReLUSAE, JumpReLUSAEConfig, {"normalize_activations": "constant_norm_rescale"}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "gated-layer-norm": (GatedSAE, GatedSAEConfig, {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False}),
    "jumprelu-folded": (JumpReLUSAE, JumpReLUSAEConfig, {}),  # fold_W_dec_norm
    "standard-f16": (StandardSAE, StandardSAEConfig, {"dtype": "float16"}),
    "jumprelu-bf16": (JumpReLUSAE, JumpReLUSAEConfig, {"dtype": "bfloat16"}),
    "standard-hook-z": (StandardSAE, StandardSAEConfig, {"reshape_activations": "none"}),
}


def saelens(name, seed):
    cls, config, extra = CASES[name]
    g = torch.Generator().manual_seed(seed)
    cfg = config(d_in=D, d_sae=F, **({"dtype": "float32"} | extra), device="cpu")
    cfg.metadata.model_name = "tiny"
    cfg.metadata.hook_name = "blocks.3.attn.hook_z" if name == "standard-hook-z" else "blocks.3.hook_resid_post"
    sae = cls(cfg)
    randomise(sae, g)
    x = inputs(g)
    if name == "jumprelu-folded":
        sae.fold_W_dec_norm()
    folder = os.path.join(OUT, name)
    with torch.no_grad():
        sae.save_model(folder)
        sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
        acts = sae.encode(x)
        keep(folder, x, acts, sae.decode(acts))


def saelens_trained(name, seed):
    """What training classes save for use: both become jumprelu."""
    g = torch.Generator().manual_seed(seed)
    if name == "batchtopk":
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, dtype="float32", device="cpu", k=5))
    else:
        sae = MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(d_in=D, d_sae=F, dtype="float32", device="cpu", k=5, matryoshka_widths=[10, 40]))
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "tiny", "blocks.3.hook_resid_post"
    x = inputs(g)
    folder = os.path.join(OUT, name)
    with torch.no_grad():
        for p_name, p in sae.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if "W_" in p_name else 0.2))
        sae.topk_threshold.fill_(1.3)
        sae.save_inference_model(folder)
        sae = SAE.load_from_disk(folder, device="cpu")
        acts = sae.encode(x)
        keep(folder, x, acts, sae.decode(acts))


def saelens_transcoder(name, seed):
    g = torch.Generator().manual_seed(seed)
    cfg = JumpReLUSkipTranscoderConfig(d_in=D, d_out=16, d_sae=F, dtype="float32", device="cpu", apply_b_dec_to_input=False)
    cfg.metadata.model_name, cfg.metadata.hook_name, cfg.metadata.hook_name_out = "tiny", "blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out"
    sae = JumpReLUSkipTranscoder(cfg)
    randomise(sae, g)
    x = inputs(g)
    folder = os.path.join(OUT, name)
    with torch.no_grad():
        sae.save_model(folder)
        sae = SAE.load_from_disk(folder, device="cpu")
        acts = sae.encode(x)
        keep(folder, x, acts, sae(x))  # forward: with the skip


def saelens_unfolded(name, seed):
    """As a checkpoint of a training is: weights for scaled inputs, the factor beside them. The peer folds it."""
    g = torch.Generator().manual_seed(seed)
    cfg = StandardSAEConfig(d_in=D, d_sae=F, dtype="float32", device="cpu", normalize_activations="expected_average_only_in")
    cfg.metadata.model_name, cfg.metadata.hook_name = "tiny", "blocks.3.hook_resid_post"
    sae = StandardSAE(cfg)
    randomise(sae, g)
    x = inputs(g)
    folder = os.path.join(OUT, name)
    with torch.no_grad():
        sae.save_model(folder)
        with open(os.path.join(folder, "activation_scaler.json"), "w") as f:
            json.dump({"scaling_factor": 0.37}, f)
        sae.fold_activation_norm_scaling_factor(0.37)
        acts = sae.encode(x)
        keep(folder, x, acts, sae.decode(acts))


def saelens_old(name, seed):
    """Keys as SAELens 3 wrote them."""
    g = torch.Generator().manual_seed(seed)
    folder = os.path.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    cfg = {"d_in": D, "d_sae": F, "dtype": "torch.float32", "device": "cpu", "model_name": "tiny", "hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3,
           "hook_point_head_index": None, "activation_fn_str": "topk" if name == "old-topk" else "relu", "prepend_bos": True, "dataset_path": "x", "context_size": 128,
           "normalize_activations": False if name == "old-topk" else "none", "finetuning_scaling_factor": False, "sae_lens_training_version": None,
           "apply_b_dec_to_input": True}
    if name == "old-topk":
        cfg["activation_fn_kwargs"] = {"k": 6}
    with open(os.path.join(folder, "cfg.json"), "w") as f:
        json.dump(cfg, f)
    w = {"W_enc": torch.randn(D, F, generator=g) * 0.3, "W_dec": torch.randn(F, D, generator=g) * 0.3, "b_enc": torch.randn(F, generator=g) * 0.2,
         "b_dec": torch.randn(D, generator=g) * 0.2, "scaling_factor": torch.ones(F)}
    save_file(w, os.path.join(folder, "sae_weights.safetensors"))
    x = inputs(g)
    with torch.no_grad():
        sae = SAE.load_from_disk(folder, device="cpu")
        acts = sae.encode(x)
        keep(folder, x, acts, sae.decode(acts))


# ---- others, through SAELens' loaders with the files at hand -----------------------------------------------------------------------


def from_folder(loader, repo, sub, **overrides):
    """The loader's dictionary, its files taken from OUT/repo/sub."""
    def local(repo_id, filename, subfolder=None, **_):
        path = os.path.join(OUT, repo_id, subfolder or "", filename)
        if not os.path.exists(path):
            raise loaders.EntryNotFoundError("not there")
        return path
    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = lambda repo_id, filename: {k: list(v.shape) for k, v in load_file(os.path.join(OUT, repo_id, filename)).items()}
    cfg, state, _ = loader(repo_id=repo, folder_name=sub, device="cpu", force_download=False, cfg_overrides={"dtype": "float32", **overrides})
    cfg = loaders.handle_config_defaulting(cfg)
    sae = SAE.from_dict(cfg)
    sae.turn_off_forward_pass_hook_z_reshaping()  # our rows have the heads side by side already
    sae.load_state_dict({k: v.float() for k, v in state.items()})
    return sae


def plain(g, d=D):
    return {"W_enc": torch.randn(d, F, generator=g) * 0.3, "W_dec": torch.randn(F, d, generator=g) * 0.3, "b_enc": torch.randn(F, generator=g) * 0.2,
            "b_dec": torch.randn(d, generator=g) * 0.2, "threshold": torch.rand(F, generator=g)}


GEMMA_1 = {  # repository, folder, how it is stored
    "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": "f32",
    "gemma-scope-2b-pt-mlp/layer_5/width_16k/average_l0_30": "deflated",
    "gemma-scope-9b-it-att/layer_9/width_16k/average_l0_12": "f16",
    "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6": "f32",
    "gemma-scope-2b-pt-res/layer_3/width_16k/fortran": "fortran",
    "gemma-scope-2b-pt-res/layer_3/width_16k/f64": "f64",
    "gemma-scope-2b-pt-res/layer_3/width_16k/bf16": "bf16",
}


def gemma_1(name, seed):
    how = GEMMA_1[name]
    g = torch.Generator().manual_seed(seed)
    repo, sub = name.split("/", 1)
    folder = os.path.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    w = {k: v.numpy() for k, v in plain(g).items()}
    if how == "f16":
        w = {k: v.astype(np.float16) for k, v in w.items()}
    elif how == "f64":
        w = {k: v.astype(np.float64) for k, v in w.items()}
    elif how == "fortran":
        w = {k: np.asfortranarray(v) for k, v in w.items()}
    save = np.savez_compressed if how == "deflated" else np.savez
    x = inputs(g)
    if how == "bf16":  # as numpy stores ml_dtypes' bfloat16; SAELens reads what the numbers are in f32
        half = {k: torch.tensor(v).bfloat16() for k, v in w.items()}
        save(os.path.join(folder, "params.npz"), **{k: v.float().numpy() for k, v in half.items()})
        sae = from_folder(loaders.gemma_2_sae_huggingface_loader, repo, sub, d_in=D, d_sae=F)
        save(os.path.join(folder, "params.npz"), **{k: v.view(torch.int16).numpy().view("V2") for k, v in half.items()})
    else:
        save(os.path.join(folder, "params.npz"), **w)
        sae = from_folder(loaders.gemma_2_sae_huggingface_loader, repo, sub, d_in=D, d_sae=F)
    with torch.no_grad():
        acts = sae.encode(x)
        keep(folder, x, acts, sae.decode(acts))


GEMMA_2 = {
    "gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_medium": {"hf_hook_point_in": "model.layers.12.output", "hf_hook_point_out": "model.layers.12.output", "type": "sae"},
    "gemma-scope-2-270m-pt/attn_out/layer_9_width_16k_l0_small": None,
    "gemma-scope-2-270m-pt/mlp_out/layer_5_width_16k_l0_big": None,
    "gemma-scope-2-270m-pt/transcoder/layer_7_width_16k_l0_small_affine": {
        "hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output", "hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output",
        "type": "transcoder", "affine_connection": True},
}


def gemma_2(name, seed):
    g = torch.Generator().manual_seed(seed)
    repo, sub = name.split("/", 1)
    folder = os.path.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    w = plain(g)
    w = {{"W_enc": "w_enc", "W_dec": "w_dec"}.get(k, k): v for k, v in w.items()}
    if "affine" in name:
        w["affine_skip_connection"] = torch.randn(D, D, generator=g) * 0.1
    save_file(w, os.path.join(folder, "params.safetensors"))
    if GEMMA_2[name]:
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump({"width": F, "model_name": "google/gemma-3-270m-pt", "architecture": "jump_relu", "l0": 60, **GEMMA_2[name]}, f)
    x = inputs(g)
    sae = from_folder(loaders.gemma_3_sae_huggingface_loader, repo, sub)
    with torch.no_grad():
        acts = sae.encode(x)
        keep(folder, x, acts, sae(x) if "affine" in name else sae.decode(acts))


def llama(name, seed):
    g = torch.Generator().manual_seed(seed)
    folder = os.path.join(OUT, name)
    os.makedirs(os.path.join(folder, "checkpoints"), exist_ok=True)
    with open(os.path.join(folder, "hyperparams.json"), "w") as f:
        json.dump({"d_model": D, "d_sae": F, "act_fn": "jumprelu", "jump_relu_threshold": 0.6, "norm_activation": "dataset-wise", "top_k": 50,
                   "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "hook_point_in": "blocks.8.hook_resid_post",
                   "hook_point_out": "blocks.8.hook_resid_post", "dataset_average_activation_norm": {"in": 6.5, "out": 6.5}}, f)
    w = plain(g)
    save_file({"encoder.weight": w["W_enc"].T.contiguous().bfloat16(), "encoder.bias": w["b_enc"].bfloat16(), "decoder.weight": w["W_dec"].T.contiguous().bfloat16(),
               "decoder.bias": w["b_dec"].bfloat16()}, os.path.join(folder, "checkpoints", "final.safetensors"))
    repo, sub = name.split("/", 1)
    x = inputs(g)
    sae = from_folder(loaders.llama_scope_sae_huggingface_loader, repo, sub)
    with torch.no_grad():
        sae.fold_activation_norm_scaling_factor(D**0.5 / 6.5)  # as SAE.from_pretrained does with the release's factor
        acts = sae.encode(x)
        keep(folder, x, acts, sae.decode(acts))


LEARNING = {
    "AutoEncoder": lambda: AutoEncoder(D, F), "AutoEncoderNew": lambda: AutoEncoderNew(D, F), "AutoEncoderTopK": lambda: AutoEncoderTopK(D, F, 6),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, F, 6), "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, F, 6, [10, 30]),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D, F), "GatedAutoEncoder": lambda: GatedAutoEncoder(D, F),
}


def learning(name, seed):
    g = torch.Generator().manual_seed(seed)
    kind = name.split("/")[1]
    ae = LEARNING[kind]()
    x = inputs(g)
    folder = os.path.join(OUT, name, "trainer_0")
    os.makedirs(folder, exist_ok=True)
    with torch.no_grad():
        for p_name, p in ae.named_parameters():  # in place: some are views of the transpose, and are saved so
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.ndim == 2 else 0.2))
        if "threshold" in dict(ae.named_buffers()):
            ae.threshold.fill_(1.1)
        elif hasattr(ae, "threshold"):
            ae.threshold.copy_(torch.rand(F, generator=g))
        torch.save(ae.state_dict(), os.path.join(folder, "ae.pt"))
        trainer = {"dict_class": kind, "trainer_class": "T", "activation_dim": D, "dict_size": F, "layer": 8, "lm_name": "EleutherAI/pythia-70m-deduped",
                   "submodule_name": "resid_post_layer_8"}
        if "TopK" in kind:
            trainer["k"] = 6
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump({"trainer": trainer, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128}}, f)
        acts = ae.encode(x)
        xhat = ae.decode(acts)
        if kind not in ("AutoEncoderNew",):  # SAELens reads it too and finds the same
            sae = from_folder(loaders.dictionary_learning_sae_huggingface_loader_1, name, "trainer_0")
            assert (sae.encode(x) - acts).abs().max() < 1e-5 and (sae.decode(acts) - xhat).abs().max() < 1e-5, kind
        keep(folder, x, acts, xhat)


ALL = [(saelens, n) for n in CASES] + [(saelens_trained, n) for n in ("batchtopk", "matryoshka")] + [(saelens_transcoder, "skip-transcoder")]
ALL += [(saelens_unfolded, "standard-unfolded")] + [(saelens_old, n) for n in ("old-standard", "old-topk")]
ALL += [(gemma_1, n) for n in GEMMA_1] + [(gemma_2, n) for n in GEMMA_2] + [(llama, "llama-scope/Llama3_1-8B-Base-L8R-8x")]
ALL += [(learning, f"dictionary-learning/{n}") for n in LEARNING]
for number, (make, name) in enumerate(ALL):
    if not ONLY or name in ONLY:
        make(name, number)
