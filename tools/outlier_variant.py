#!/usr/bin/env python3
"""Gives a small model the activation outliers of a large one, without changing what it computes.

Quantizers are made for models whose activations have a few channels far larger than the others; small models have
almost none. Two changes of the weights that cancel out give them such channels:
  * in every layer's two norms, the gains of a few channels (--channels, the same in all layers, as in large models) are
    multiplied by --norm-scale, and the columns that read these channels in q, k, v and in gate, up are divided by it;
  * in every layer and KV head, one pair of K's dimensions that RoPE rotates together is multiplied by --key-scale, and
    the same pair of Q is divided by it in all query heads that read this KV head. Where the model normalises Q and K
    (Qwen 3), the gains of these norms are changed instead, and the pair is the same in all heads.
Channels and pairs are drawn by --seed. The result is written as F32, because the divided weights of a 16-bit model
would not be 16-bit numbers; what is left is float32's rounding, of about 1e-7 of a value.

Needs Python's standard library only: it is meant for small models.
Usage: outlier_variant.py MODEL OUT [--seed N] [--norm-scale 60] [--channels 3] [--key-scale 12]
"""
import argparse
import array
import json
import os
import random
import shutil
import struct
import sys

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def read_tensors(path):
    """{name: (shape, array of float32)} of a safetensors file."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["shape"], widen(data[begin:end], entry["dtype"], f"{path}: {name}"))
    return tensors


def widen(data, kind, what):
    if kind not in WIDTHS:
        sys.exit(f"{what} is {kind}; only {', '.join(WIDTHS)} can be changed")
    count = len(data) // WIDTHS[kind]
    if kind == "F16":
        return array.array("f", struct.unpack(f"<{count}e", data))
    if kind == "BF16":  # the upper half of a float32
        halves = array.array("H", data)
        if sys.byteorder == "big":
            halves.byteswap()
        words = array.array("I", (half << 16 for half in halves))
        return array.array("f", words.tobytes())
    values = array.array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def write_tensors(path, tensors):
    header, place = {}, 0
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + 4 * len(values)]}
        place += 4 * len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            if sys.byteorder == "big":
                values = array.array("f", values)
                values.byteswap()
            file.write(values.tobytes())


def scale_columns(tensor, columns, factor):
    (rows, width), values = tensor
    for row in range(rows):
        for column in columns:
            values[row * width + column] *= factor


def scale_rows(tensor, rows, factor):
    shape, values = tensor
    width = shape[1] if len(shape) == 2 else 1
    for row in rows:
        for i in range(row * width, (row + 1) * width):
            values[i] *= factor


class Variant:
    def __init__(self, config, tensors, options):
        self.tensors, self.options = tensors, options
        self.random = random.Random(options.seed)
        self.layers, self.hidden = config["num_hidden_layers"], config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head_dim = config.get("head_dim") or self.hidden // self.heads
        if not 0 < options.channels <= self.hidden:
            sys.exit(f"--channels is {options.channels}, but the model has {self.hidden}")
        self.channels = sorted(self.random.sample(range(self.hidden), options.channels))
        self.prefix = "model." if "model.layers.0.input_layernorm.weight" in tensors else ""

    def tensor(self, layer, name):
        """A tensor of a layer; None where there is none."""
        return self.tensors.get(f"{self.prefix}layers.{layer}.{name}")

    def needed(self, layer, name):
        found = self.tensor(layer, name)
        return found or sys.exit(f"the model has no {self.prefix}layers.{layer}.{name}")

    def scale_norm(self, layer, norm, readers):
        scale_rows(self.needed(layer, norm + ".weight"), self.channels, self.options.norm_scale)
        for reader in readers:
            scale_columns(self.needed(layer, reader + ".weight"), self.channels, 1 / self.options.norm_scale)

    def scale_pair(self, layer, projection, head, pair, factor):
        rows = [head * self.head_dim + dimension for dimension in pair]
        scale_rows(self.needed(layer, f"self_attn.{projection}.weight"), rows, factor)
        bias = self.tensor(layer, f"self_attn.{projection}.bias")
        if bias:
            scale_rows(bias, rows, factor)

    def draw_pair(self):
        first = self.random.randrange(self.head_dim // 2)
        return first, first + self.head_dim // 2

    def scale_keys(self, layer):
        scale, group = self.options.key_scale, self.heads // self.kv_heads
        if self.tensor(layer, "self_attn.k_norm.weight"):
            pair = self.draw_pair()
            scale_rows(self.needed(layer, "self_attn.k_norm.weight"), pair, scale)
            scale_rows(self.needed(layer, "self_attn.q_norm.weight"), pair, 1 / scale)
            return
        for kv_head in range(self.kv_heads):
            pair = self.draw_pair()
            self.scale_pair(layer, "k_proj", kv_head, pair, scale)
            for head in range(kv_head * group, (kv_head + 1) * group):
                self.scale_pair(layer, "q_proj", head, pair, 1 / scale)

    def make(self):
        for layer in range(self.layers):
            self.scale_norm(layer, "input_layernorm", [f"self_attn.{name}_proj" for name in "qkv"])
            self.scale_norm(layer, "post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"])
            self.scale_keys(layer)


def read_model(folder):
    index = os.path.join(folder, "model.safetensors.index.json")
    single = os.path.join(folder, "model.safetensors")
    if os.path.exists(single) or not os.path.exists(index):
        return read_tensors(single)
    with open(index, encoding="utf-8") as file:
        shards = sorted(set(json.load(file)["weight_map"].values()))
    tensors = {}
    for shard in shards:
        tensors.update(read_tensors(os.path.join(folder, shard)))
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder of a Llama- or Qwen-family model")
    parser.add_argument("out", help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="draws channels and pairs (default %(default)s)")
    parser.add_argument("--norm-scale", type=float, default=60, help="factor of norm gains (default %(default)s)")
    parser.add_argument("--channels", type=int, default=3, help="channels with this factor (default %(default)s)")
    parser.add_argument("--key-scale", type=float, default=12, help="factor of the pair of K (default %(default)s)")
    options = parser.parse_args()
    if options.norm_scale == 0 or options.key_scale == 0:
        parser.error("a factor of 0 cannot be undone")
    try:
        with open(os.path.join(options.model, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        if "quantization_config" in config:
            sys.exit(f"{options.model} is quantized: start from the original")
        tensors = read_model(options.model)
        Variant(config, tensors, options).make()
        os.mkdir(options.out)
        config["torch_dtype"] = "float32"
        for name in sorted(os.listdir(options.model)):
            path = os.path.join(options.model, name)
            if os.path.isfile(path) and ".safetensors" not in name and name != "config.json":
                shutil.copyfile(path, os.path.join(options.out, name))
        with open(os.path.join(options.out, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=1)
            file.write("\n")
        write_tensors(os.path.join(options.out, "model.safetensors"), tensors)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
