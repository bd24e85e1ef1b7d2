#!/usr/bin/env python3
"""Makes the tiny models of tests/golden/models and the logits they must give.

Each folder is a randomly initialised model of one family with the file expected.safetensors: input_ids, I32 [n],
and logits, F32 [n, vocab], computed by the transformers library in float64 (but its norms, softmax and rotary angles,
which it always computes in float32) from the weights as stored, that is after their rounding to F16 or BF16.

Needs torch, transformers and safetensors (a virtual environment will do):
    python tools/make_model_fixtures.py [--out tests/golden/models] [name ...]
The same versions of these libraries give the same files; tests/golden/README.md names those used.
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

POSITIONS = 24
SMALL = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, vocab_size=80,
             max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
# Sizes that are no multiples of a vector register: heads of 20, rows of 60 and 115.
ODD = dict(SMALL, hidden_size=60, intermediate_size=115, num_attention_heads=3, vocab_size=101)
# With heads of 12, one frequency is kept, one is interpolated and four are divided by the factor.
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}

# name: model class, configuration, keys of config.json to write differently, how to store it
FIXTURES = {
    "llama2-mha": (LlamaForCausalLM, LlamaConfig(**ODD, rms_norm_eps=1e-5), {}, {"type": torch.float16}),
    "llama3-gqa-rope-f16": (LlamaForCausalLM,
                            LlamaConfig(**SMALL, num_key_value_heads=2, rms_norm_eps=1e-5,
                                        rope_scaling=LLAMA3_ROPE), {"eos_token_id": [2, 3]},
                            {"type": torch.float16}),
    "llama-linear-rope-sharded": (LlamaForCausalLM,
                                  LlamaConfig(**SMALL, num_key_value_heads=1,
                                              rope_scaling={"rope_type": "linear", "factor": 4.0}),
                                  {}, {"shards": 3, "type": torch.bfloat16}),
    "llama-biases": (LlamaForCausalLM, LlamaConfig(**SMALL, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
                     {}, {"new_rope": True, "type": torch.float16}),
    "qwen2-tied": (Qwen2ForCausalLM,
                   Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True, sliding_window=32,
                               use_sliding_window=False, rope_theta=1000000.0), {}, {"stored_head": "lm_head"}),
    "qwen3-head-dim-bf16": (Qwen3ForCausalLM,
                            Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=24,
                                        tie_word_embeddings=True, rope_theta=1000000.0),
                            {}, {"type": torch.bfloat16}),
    "mistral-no-prefix": (MistralForCausalLM,
                          MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=None, rms_norm_eps=1e-5), {},
                          {"prefix": "", "type": torch.float16}),
}

KEPT_KEYS = ("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
             "rms_norm_eps", "hidden_act", "tie_word_embeddings", "attention_bias", "mlp_bias", "sliding_window",
             "use_sliding_window", "bos_token_id", "eos_token_id")


def randomize(model, seed, stored_type):
    """Weights large enough for clear logits, norm gains away from 1, biases away from 0, all exact in stored_type."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                value = 1 + 0.3 * noise
            elif name.endswith("bias"):
                value = 0.5 * noise
            else:
                value = 0.3 * noise
            weight.copy_(value.to(stored_type).float())


def restore_rope_keys(config, written, new_rope):
    """The rotary parameters in the spelling most published files have, or (new_rope) in the newer one."""
    rope = dict(config.rope_parameters)
    if new_rope:
        written["rope_parameters"] = rope
        return
    written["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") == "default":
        return
    if rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")
    written["rope_scaling"] = rope


def write_config(folder, config, changes, how):
    full = config.to_dict()
    written = {key: full[key] for key in KEPT_KEYS if key in full and key != "architectures"}
    if config.model_type == "llama" and not changes.get("head_dim"):
        written.pop("head_dim", None)
    restore_rope_keys(config, written, how.get("new_rope", False))
    written.update(changes)
    written["torch_dtype"] = str(how.get("type", torch.float32)).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")


def write_weights(folder, model, how):
    tensors = {}
    for name, weight in model.state_dict().items():
        if model.config.tie_word_embeddings and name == "lm_head.weight":
            continue
        if name == "model.embed_tokens.weight" and how.get("stored_head"):
            name = how["stored_head"] + ".weight"
        if name.startswith("model."):
            name = how.get("prefix", "model.") + name.removeprefix("model.")
        tensors[name] = weight.detach().to(how.get("type", torch.float32)).contiguous()
    shards = how.get("shards", 1)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map.update({name: file for name in part})
    size = sum(weight.numel() * weight.element_size() for weight in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make(name, out, seed):
    kind, config, changes, how = FIXTURES[name]
    config._attn_implementation = "eager"
    model = kind(config).eval()
    randomize(model, seed, how.get("type", torch.float32))
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_config(folder, config, changes, how)
    write_weights(folder, model, how)
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(3, config.vocab_size, (POSITIONS,), generator=generator)
    ids[0] = 1
    with torch.no_grad():
        logits = model.double()(ids[None]).logits[0].float()
    save_file({"input_ids": ids.int(), "logits": logits}, folder / "expected.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size} bytes, logits deviation {logits.std():.2f}, largest {logits.abs().max():.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/golden/models"))
    parser.add_argument("names", nargs="*", default=list(FIXTURES))
    arguments = parser.parse_args()
    for name in arguments.names:
        make(name, arguments.out, seed=1000 + list(FIXTURES).index(name))


if __name__ == "__main__":
    main()
